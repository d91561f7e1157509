"""CSV rows of bench/segmentation.py."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bench.roofline import Roofline
from bench.timing import quantiles
from bench.vit.segmenters import Method
from bench.vit.table4 import LABELS, TABLE, paper_row

Row = dict[str, Any]


def make_rows(
    methods: Sequence[Method],
    samples: Mapping[str, Sequence[float]],
    size: str,
    image_size: int,
    batch: int,
    device: torch.device,
    roofline: Roofline,
) -> list[Row]:
    """CSV rows of the methods of one model and batch size; times are milliseconds per image.

    Args:
        methods: methods that were timed.
        samples: seconds of a call, by `Method.key`.
        size: size of the models, a key of `table4.TABLE`.
        image_size: side of the images in pixels.
        batch: images of a call.
        device: device of the models.
        roofline: ceilings of the device.
    """
    times = {key: {"least": min(each)} | quantiles(each) for key, each in samples.items()}
    dense = {method.masks: times[method.key] for method in methods if method.name == "dense"}
    rows = []
    for method in methods:
        time = times[method.key]
        rate = 2 * method.gmacs * batch / time["p50"]
        rows.append(
            {
                "bench": "segmentation",
                "model": LABELS[size],
                "image_size": image_size,
                "batch": batch,
                "masks": method.masks,
                "method": method.name,
                "wanted_tokens": method.wanted,
                "tokens": method.tokens,
                "encoder_gmacs": method.encoder_gmacs,
                "gmacs": method.gmacs,
                "samples": len(samples[method.key]),
                **{f"{name}_ms": value * 1e3 / batch for name, value in time.items()},
                **{
                    f"times_dense_{name}": _ratio(dense.get(method.masks), time, name)
                    for name in ("least", "p20", "p50")
                },
                "gflop_s": rate,
                "share_of_peak": rate / roofline.peak_gflop_s,
                **_paper(size, method.wanted, image_size, device),
            }
        )
    return rows


def _ratio(dense: Mapping[str, float] | None, time: Mapping[str, float], name: str) -> float | None:
    return dense[name] / time[name] if dense else None


def _paper(size: str, tokens: int, image_size: int, device: torch.device) -> Row:
    """The paper's figures for a number of tokens; None if its table has no such row."""
    row, plain = paper_row(size, tokens, image_size), TABLE[size][0]
    return {
        "paper_target": row and row.target,
        "paper_encoder_gmacs": row and row.encoder_gmacs,
        "paper_ms": row and row.ms(device.type),
        "paper_times_dense": row and plain.ms(device.type) / row.ms(device.type),
    }
