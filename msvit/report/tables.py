"""The tables of the report, and runs.csv."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from msvit.report.examined import Examined, Group
from msvit.report.page import Table
from msvit.report.settings import mean_and_spread
from msvit_kernels.files import write_rows

# Name, digits after the decimal point, and function of a run that returns the value.
_COLUMNS: tuple[tuple[str, int, Callable[[Examined], float]], ...] = (
    ("top-1, %", 2, lambda run: 100 * run.evaluation.top1),
    ("tokens per image", 1, lambda run: run.evaluation.tokens_per_image),
    ("GMACs", 4, lambda run: run.evaluation.gmacs),
    ("ms per image", 3, lambda run: run.latency_ms),
    ("fine regions, %", 1, lambda run: 100 * run.evaluation.fine_share),
    ("variance between images, %", 1, lambda run: 100 * run.evaluation.dynamics),
    ("fine on object, %", 1, lambda run: 100 * run.coverage.on_object if run.coverage else math.nan),
    ("by chance, %", 1, lambda run: 100 * run.coverage.chance if run.coverage else math.nan),
    ("object found, %", 1, lambda run: 100 * run.coverage.found if run.coverage else math.nan),
)


def run_table(groups: Sequence[Group]) -> Table:
    """Makes a table with a row for each run."""
    rows = [
        [f"{group.label}: {run.run.name}", str(run.run.config.seed), *_cells([run])]
        for group in groups
        for run in group.runs
    ]
    return Table(["run", "seed", *(name for name, _, _ in _COLUMNS)], rows)


def setting_table(groups: Sequence[Group]) -> Table:
    """Makes a table with a row for each setting: mean over its runs, and standard deviation if there are several."""
    rows = [[group.label, str(len(group.runs)), *_cells(group.runs)] for group in groups]
    return Table(["setting", "runs", *(name for name, _, _ in _COLUMNS)], rows)


def write_runs(groups: Sequence[Group], path: Path) -> None:
    """Writes the unrounded values of all runs as CSV, with a row for each run."""
    rows = [
        {"setting": group.label, "run": run.run.name, "seed": run.run.config.seed}
        | {name: value(run) for name, _, value in _COLUMNS}
        for group in groups
        for run in group.runs
    ]
    write_rows(path, ["setting", "run", "seed", *(name for name, _, _ in _COLUMNS)], rows)


def _cells(runs: Sequence[Examined]) -> list[str]:
    cells = []
    for _, digits, value in _COLUMNS:
        mean, spread = mean_and_spread([value(run) for run in runs])
        if math.isnan(mean):
            cells.append("–")
        elif len(runs) > 1:
            cells.append(f"{mean:.{digits}f} ± {spread:.{digits}f}")
        else:
            cells.append(f"{mean:.{digits}f}")
    return cells
