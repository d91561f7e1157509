"""CSV rows of bench/latency.py."""

from typing import Any

from bench.roofline import Roofline
from bench.timing import QUANTILES, median, quantiles
from bench.vit.sweep import Sample, Sweep
from bench.vit.tokens import reference_tokens
from bench.vit.zoo import Method


def make_rows(
    sweeps: list[Sweep], tables: dict[int, list[list[Method]]], extra: dict[str, Any], roofline: Roofline
) -> list[dict[str, Any]]:
    """CSV rows in the order of the table; times are milliseconds per image."""
    return [
        _row(sweep, method, roofline) | extra
        for sweep in sweeps
        for group in tables[sweep.batch]
        for method in group
        if sweep.key(method) in sweep.samples  # otherwise the time was over before its turn
    ]


def _row(sweep: Sweep, method: Method, roofline: Roofline) -> dict[str, Any]:
    samples = sweep.samples[sweep.key(method)]
    p50_ms = _median_ms(samples)
    dense = reference_tokens(method.wanted)

    def times(name: str, tokens: int) -> float | None:
        other = sweep.samples.get((name, tokens, sweep.batch))
        return _median_ms(other) / p50_ms if other else None

    compiled = [ratio for name in ("dense compiled", "dense compiled graph") if (ratio := times(name, dense))]
    rate = 2 * method.gmacs / (p50_ms / 1e3)
    return {
        "bench": "latency",
        "batch": sweep.batch,
        "wanted_tokens": method.wanted,
        "method": method.name,
        "tokens": method.tokens,
        "image_size": method.image_size,
        "gmacs": round(method.gmacs, 4),
        "samples": len(samples),
        **time_columns(samples),
        "times_masked": times("masked", method.wanted),
        "times_dense": times("dense", dense),
        "times_compiled": min(compiled, default=None),
        "reference_tokens": dense,
        "gflop_s": rate,
        "share_of_peak": rate / roofline.peak_gflop_s,
    }


def _median_ms(samples: list[Sample]) -> float:
    return median([whole for _, whole in samples]) * 1e3


def time_columns(samples: list[Sample]) -> dict[str, float | None]:
    """Quantiles in milliseconds of the transformer and of the whole call; None if the blocks have no time."""
    columns: dict[str, float | None] = {}
    for part, seconds in zip(("transformer", "all"), zip(*samples, strict=True), strict=True):
        known = [value for value in seconds if value is not None]
        times = quantiles(known) if known else {}
        columns |= {f"{part}_p{q}_ms": times[f"p{q}"] * 1e3 if times else None for q in QUANTILES}
    return columns
