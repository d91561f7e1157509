"""CSV rows of bench/latency.py."""

from typing import Any

from bench.roofline import Roofline
from bench.timing import QUANTILES, quantiles
from bench.vit.sweep import Sweep
from bench.vit.tokens import reference_tokens
from bench.vit.zoo import Method


def make_rows(
    sweeps: list[Sweep], tables: dict[int, list[list[Method]]], extra: dict[str, Any], roofline: Roofline
) -> list[dict[str, Any]]:
    """CSV rows in the order of the table; times are milliseconds per image."""
    rows = []
    for sweep in sweeps:
        times = {key: time_columns(samples) for key, samples in sweep.samples.items()}
        for method in (method for group in tables[sweep.batch] for method in group):
            if (method.name, method.wanted, sweep.batch) not in times:
                continue  # the time was over before its turn came
            time_of = times[method.name, method.wanted, sweep.batch]
            p50 = time_of["all_p50_ms"]
            masked = times.get(("masked", method.wanted, sweep.batch))
            reference = times.get(("dense", reference_tokens(method.wanted), sweep.batch))
            compiled = [
                times[key]["all_p50_ms"]
                for name in ("dense compiled", "dense compiled graph")
                if (key := (name, reference_tokens(method.wanted), sweep.batch)) in times
            ]
            rate = 2 * method.gmacs / (p50 / 1e3)
            rows.append(
                {"bench": "latency", "batch": sweep.batch, "wanted_tokens": method.wanted, "method": method.name}
                | {"tokens": method.tokens, "image_size": method.image_size, "gmacs": round(method.gmacs, 4)}
                | {"samples": len(sweep.samples[method.name, method.wanted, sweep.batch]), **time_of}
                | {"times_masked": masked and masked["all_p50_ms"] / p50}
                | {"times_dense": reference and reference["all_p50_ms"] / p50}
                | {"times_compiled": min(compiled) / p50 if compiled else None}
                | {"reference_tokens": reference_tokens(method.wanted), "gflop_s": rate}
                | {"share_of_peak": rate / roofline.peak_gflop_s, **extra}
            )
    return rows


def time_columns(samples: list[tuple[float | None, float]]) -> dict[str, float | None]:
    """Quantiles in milliseconds of the transformer and of the whole call; None if the blocks have no time."""
    columns: dict[str, float | None] = {}
    for part, seconds in zip(("transformer", "all"), zip(*samples, strict=True), strict=True):
        known = [value for value in seconds if value is not None]
        times = quantiles(known) if known else {}
        columns |= {f"{part}_p{q}_ms": times[f"p{q}"] * 1e3 if times else None for q in QUANTILES}
    return columns
