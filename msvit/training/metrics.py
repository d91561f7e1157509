"""metrics.csv and priors.csv of a run: numbers, one row per epoch."""

import csv
from pathlib import Path

from msvit_kernels.files import read_rows

METRICS_FILE, PRIORS_FILE = "metrics.csv", "priors.csv"

COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "task_loss",
    "gate_loss",
    "train_tokens_per_image",
    "test_loss",
    "top1",
    "top5",
    "tokens_per_image",
    "fine_share",
    "gmacs",
    "images_per_s",
    "seconds",
)


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


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Reads metrics.csv in the folder of a run; no row if it does not exist.

    Raises:
        ValueError: a value is not a number, or the columns are not `COLUMNS`.
    """
    path = run / METRICS_FILE
    rows = read_numbers(path)
    for row in rows:
        if row.keys() != set(COLUMNS):
            raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(row)}")
    return rows


def _number(text: str) -> float:
    value = float(text)
    return int(value) if text.lstrip("-").isdigit() else value
