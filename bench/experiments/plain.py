"""Mixed-scale models against plain ones of equal cost, interpolated between image sizes."""

import itertools
import statistics
from collections.abc import Sequence

from bench.experiments.spread import Rows, mean_and_error, points, verdict

PLAIN = ("plain-80", "plain-64", "plain-48", "plain-32")
LONG = "-long"  # ends the names of settings that are trained for longer


def mixed_scale_beats_plain(rows: Rows) -> list[str]:
    """Mixed-scale against plain models of the same seed and the same MACs, interpolated between image sizes."""
    lines = []
    for name, suffix in (
        ("gbas", ""),
        ("gbas-25", ""),
        ("gbas-masked", ""),
        ("frozen-masked", ""),
        ("gbas-long", LONG),
    ):
        curves = [
            (row, plain_curve(rows, [plain + suffix for plain in PLAIN], row["seed"], "top1"))
            for row in rows.get(name, [])
        ]
        pairs = [(row, value_at_cost(curve, float(row["gmacs"]))) for row, curve in curves if len(curve) > 1]
        if outside := [row for row, expected in pairs if expected is None]:
            costs = ", ".join(f"{float(row['gmacs']):.4f} GMACs with seed {row['seed']}" for row in outside)
            lines.append(f"- `{name}`: {costs} outside the range of the plain models; **not decided**.")
            continue
        inside = [(float(row["top1"]), expected) for row, expected in pairs if expected is not None]
        change = mean_and_error([top1 - expected for top1, expected in inside])
        if change is None:
            lines.append(f"- `{name}` against plain models: not measured.")
            continue
        cost = statistics.fmean(float(row["gmacs"]) for row, _ in pairs)
        mine, theirs = (100 * statistics.fmean(column) for column in zip(*inside, strict=True))
        lines.append(
            f"- `{name}` is better than plain models of {cost:.4f} GMACs: **{verdict(change)}** ({points(change)}; "
            f"{mine:.1f} % against {theirs:.1f} %, interpolated between two image sizes for each seed)."
        )
    return lines


def plain_curve(rows: Rows, settings: Sequence[str], seed: str, column: str) -> list[tuple[float, float]]:
    """(GMACs, value of the column) of the settings' models of one seed, in the order of their cost."""
    plain = [row for name in settings for row in rows.get(name, []) if row["seed"] == seed]
    return sorted((float(row["gmacs"]), float(row[column])) for row in plain)


def value_at_cost(curve: Sequence[tuple[float, float]], cost: float) -> float | None:
    """Value of the curve at a cost, linear between its points; None outside its range."""
    for (low, at_low), (high, at_high) in itertools.pairwise(curve):
        if low <= cost <= high:
            return at_low + (at_high - at_low) * (cost - low) / (high - low)
    return None
