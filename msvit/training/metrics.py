"""metrics.csv and priors.csv of a run: numbers, one row per epoch."""

import csv
from collections.abc import Sequence
from pathlib import Path

from msvit_kernels.files import read_rows

METRICS_FILE, PRIORS_FILE, CLASSES_FILE = "metrics.csv", "priors.csv", "classes.csv"

_TRAINING = ("epoch", "step", "train_loss", "task_loss", "gate_loss", "train_tokens_per_image")
_TIMES = ("images_per_s", "seconds")


def columns_of(test_columns: Sequence[str]) -> tuple[str, ...]:
    """The columns of metrics.csv, of which a task gives those for the test images."""
    return (*_TRAINING, *test_columns, *_TIMES)


def read_numbers(path: Path) -> list[dict[str, float]]:
    """Reads the rows of a CSV file of numbers, by column; none if the file does not exist.

    Raises:
        ValueError: a value is not a number.
    """
    if not path.exists():
        return []
    try:
        return [{name: _number(value) for name, value in row.items()} for row in read_rows(path)]
    except (TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: expected numbers ({error})") from error


def read_metrics(run: Path, columns: Sequence[str]) -> list[dict[str, float]]:
    """Reads metrics.csv in the folder of a run; no row if it does not exist.

    Raises:
        ValueError: a value is not a number, or the columns are not `columns`.
    """
    path = run / METRICS_FILE
    rows = read_numbers(path)
    for row in rows:
        if row.keys() != set(columns):
            raise ValueError(f"{path}: expected the columns {', '.join(columns)}, got {', '.join(row)}")
    return rows


def _number(text: str) -> float:
    value = float(text)
    return int(value) if text.lstrip("-").isdigit() else value
