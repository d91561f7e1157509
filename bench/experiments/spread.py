"""Means over seeds, paired differences, and verdicts that follow from their errors."""

import math
import statistics
from collections.abc import Sequence

from bench.rows import Row

Rows = dict[str, list[Row]]  # by setting; the rows of a setting by seed


def values(rows: Sequence[Row], column: str) -> list[float]:
    """One number for each seed; NaN if the cell is empty."""
    return [float(row[column] or "nan") for row in rows]


def difference(rows: Rows, first: str, second: str, column: str) -> tuple[float, float] | None:
    """`mean_and_error` of first minus second, over the seeds that both have."""
    return mean_and_error(differences(rows, first, second, column))


def differences(rows: Rows, first: str, second: str, column: str) -> list[float]:
    """First minus second for each seed that both have; NaN if a cell is empty."""
    theirs = {row["seed"]: row for row in rows.get(second, [])}
    pairs = [(row, theirs[row["seed"]]) for row in rows.get(first, []) if row["seed"] in theirs]
    return [float(mine[column] or "nan") - float(other[column] or "nan") for mine, other in pairs]


def mean_and_error(found: Sequence[float]) -> tuple[float, float] | None:
    """Mean, and twice its standard error; None for fewer than two numbers, or if one is not a number."""
    if len(found) < 2 or any(map(math.isnan, found)):
        return None
    return statistics.fmean(found), 2 * statistics.stdev(found) / math.sqrt(len(found))


def verdict(change: tuple[float, float] | None, least: float = 0.0) -> str:
    """Whether the change is above `least` by more than twice its standard error."""
    if change is None:
        return "not measured"
    mean, error = change
    if mean - error > least:
        return "holds"
    return "does not hold" if mean + error < least else "undecided"


def points(change: tuple[float, float]) -> str:
    """A change with its error, in points of 1 %."""
    return f"{100 * change[0]:+.1f} ± {100 * change[1]:.1f} points"
