"""The study of segmentation: plain, mixed-scale and smaller plain Segmenters on digits with masks."""

import math
import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student

from bench.experiments.page import rows_by_setting, source_line, table
from bench.experiments.plain import plain_curve, value_at_cost
from bench.experiments.settings import Setting
from bench.experiments.spread import Rows, differences
from bench.marked import Markers
from msvit.training import Run
from msvit.training.batches import Share
from msvit.training.tasks.segmentation import Segmentation

MARKERS = Markers("python -m bench.experiments --study segmentation")
QUICK = {"image_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "train_size": 64, "test_size": 20, "epochs": 1}
COMMON = {"epochs": 3, "warmup_epochs": 0.3}
_LEVEL = 0.95
_INTERVALS = f"± is half of a Student t interval of {_LEVEL:.0%} for the mean over seeds."
_SCRATCH = {"gate": "fine", "epochs": 16, "warmup_epochs": 1.0}

SETTINGS = (
    Setting("pretrained", "plain, from scratch: what all below start from", _SCRATCH, pretrained=False),
    Setting("plain-64", "plain, 64 px", {"gate": "fine"}),
    Setting("plain-48", "plain, 48 px", {"gate": "fine", "image_size": 48}),
    Setting("plain-32", "plain, 32 px", {"gate": "fine", "image_size": 32}),
    Setting("coarse", "all regions of 64 px coarse", {"gate": "coarse"}),
    Setting("entropy-50", "entropy gate, half of the training regions fine", {"gate": "entropy", "gate_target": 0.5}),
    Setting("entropy-25", "entropy gate, a quarter of them", {"gate": "entropy", "gate_target": 0.25}),
    Setting("budget-40", "the highest entropies, 40 tokens on average", {"gate": "entropy", "tokens_per_image": 40.0}),
    Setting("budget-28", "the same, 28 tokens", {"gate": "entropy", "tokens_per_image": 28.0}),
    Setting("random-25", "random gate, a quarter of the regions fine", {"gate": "random", "gate_target": 0.25}),
)
_PLAIN, _MIXED = ("plain-64", "plain-48", "plain-32"), ("entropy-50", "entropy-25", "budget-40", "budget-28")
# Column, header, factor, digits after the point.
_COLUMNS = (
    ("miou", "mIoU, %", 100, 1),
    ("pixel_accuracy", "pixel accuracy, %", 100, 1),
    ("tokens_per_image", "tokens", 1, 1),
    ("gmacs", "GMACs", 1, 4),
    ("fine_share", "fine, %", 100, 1),
    ("coarse_of_digits", "digits in coarse regions, %", 100, 1),
    ("train_images_per_s", "training images/s", 1, 0),
)


def measure(run: Run, device: torch.device) -> dict[str, Any]:
    """Columns of a run, from its last checkpoint."""
    dataset = run.test_dataset()
    found = Segmentation(run.config).measure(run.model().to(device), dataset, Share())
    photograph = dataset.class_names.index("photograph")
    of_digits = [share for index, share in enumerate(found.coarse_shares) if index != photograph]
    config = run.config
    return {
        "image_size": run.image_size[0],
        "gate_target": config.gate_target,
        "epochs": config.epochs,
        "train_images": config.train_size,
        "test_images": found.images,
        "miou": found.mean_iou,
        "pixel_accuracy": found.accuracy,
        "tokens_per_image": found.tokens_per_window,
        "gmacs": found.gmacs,
        "fine_share": found.fine_share,
        "coarse_of_digits": statistics.fmean(of_digits),
        "train_seconds": run.metrics[-1]["seconds"],
        "train_images_per_s": statistics.fmean(row["images_per_s"] for row in run.metrics),
    }


def text(path: Path) -> str:
    """The table and the comparisons, from the rows of a CSV."""
    rows = rows_by_setting(path)
    lines = [
        *source_line(path, rows),
        "",
        *table(rows, _COLUMNS, "miou", half_interval),
        "",
        _INTERVALS,
        "",
        *_comparisons(rows),
    ]
    return "\n".join(lines)


def half_interval(found: Sequence[float]) -> float:
    """Half of the Student t interval for the mean of two numbers or more."""
    quantile = float(student.ppf((1 + _LEVEL) / 2, len(found) - 1))
    return quantile * statistics.stdev(found) / math.sqrt(len(found))


def _comparisons(rows: Rows) -> list[str]:
    """Mixed-scale against plain models of the same seed and cost, and against a random gate."""
    lines = []
    for name in _MIXED:
        pairs = []
        for row in rows.get(name, []):
            curve = plain_curve(rows, _PLAIN, row["seed"], "miou")
            expected = value_at_cost(curve, float(row["gmacs"]))
            pairs.append(math.nan if expected is None else float(row["miou"]) - expected)
        lines.append(_line(f"`{name}` against plain models of its cost, interpolated between image sizes", pairs))
    pairs = differences(rows, "entropy-25", "random-25", "miou")
    lines.append(_line("`entropy-25` against `random-25`", pairs))
    return [part for line in lines for part in textwrap.wrap(line, 120, subsequent_indent="  ")]


def _line(about: str, pairs: Sequence[float]) -> str:
    if len(pairs) < 2 or any(map(math.isnan, pairs)):
        return f"- {about}: not measured."
    points = [100 * value for value in pairs]
    mean, half = statistics.fmean(points), half_interval(points)
    word = "undecided" if abs(mean) <= half else "better" if mean > 0 else "worse"
    return f"- {about}: {mean:+.1f} ± {half:.1f} points of mIoU, **{word}**."
