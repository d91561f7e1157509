"""The tables of the report, and runs.csv."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from msvit.report.page import Table
from msvit.report.settings import mean_and_spread
from msvit_kernels.files import write_rows


class Column(NamedTuple):
    """A column: its name, its digits after the decimal point, and a function of a run that returns the value."""

    name: str
    digits: int
    value: Callable[[Any], float]


COLUMNS = (
    Column("top-1, %", 2, lambda run: run.score),
    Column("tokens per image", 1, lambda run: run.evaluation.tokens_per_image),
    Column("GMACs", 4, lambda run: run.gmacs),
    Column("ms per image", 3, lambda run: run.latency_ms),
    Column("fine regions, %", 1, lambda run: 100 * run.evaluation.fine_share),
    Column("variance between images, %", 1, lambda run: 100 * run.evaluation.dynamics),
    Column("fine on object, %", 1, lambda run: 100 * run.coverage.on_object if run.coverage else math.nan),
    Column("by chance, %", 1, lambda run: 100 * run.coverage.chance if run.coverage else math.nan),
    Column("object found, %", 1, lambda run: 100 * run.coverage.found if run.coverage else math.nan),
)


class GroupLike(Protocol):
    """Examined runs of one setting, of any task."""

    @property
    def label(self) -> str: ...

    @property
    def runs(self) -> Sequence[Any]: ...


def result_tables(groups: Sequence[GroupLike], columns: Sequence[Column] = COLUMNS) -> list[Table]:
    """Makes a table with a row for each run and, if there are several runs, one with a row for each setting first."""
    rows = [
        [f"{group.label}: {run.run.name}", str(run.run.config.seed), *_cells([run], columns)]
        for group in groups
        for run in group.runs
    ]
    tables = [Table(["run", "seed", *(column.name for column in columns)], rows)]
    if len(rows) > 1:
        settings = [[group.label, str(len(group.runs)), *_cells(group.runs, columns)] for group in groups]
        tables.insert(0, Table(["setting", "runs", *(column.name for column in columns)], settings))
    return tables


def write_runs(groups: Sequence[GroupLike], path: Path, columns: Sequence[Column] = COLUMNS) -> None:
    """Writes the unrounded values of all runs as CSV, with a row for each run."""
    rows = [
        {"setting": group.label, "run": run.run.name, "seed": run.run.config.seed}
        | {column.name: column.value(run) for column in columns}
        for group in groups
        for run in group.runs
    ]
    write_rows(path, ["setting", "run", "seed", *(column.name for column in columns)], rows)


def _cells(runs: Sequence[Any], columns: Sequence[Column]) -> list[str]:
    """Mean over the runs, with the standard deviation if there are several."""
    cells = []
    for column in columns:
        mean, spread = mean_and_spread([column.value(run) for run in runs])
        if math.isnan(mean):
            cells.append("–")
        elif len(runs) > 1:
            cells.append(f"{mean:.{column.digits}f} ± {spread:.{column.digits}f}")
        else:
            cells.append(f"{mean:.{column.digits}f}")
    return cells
