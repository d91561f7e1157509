"""metrics.csv and priors.csv of a run: one row per epoch, rewritten whole, so that a reader never sees half a row."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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


def read_rows(path: Path) -> list[dict[str, float]]:
    """Rows of a CSV file of numbers; none where it does not exist.

    Raises:
        ValueError: something in it is not a number.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        return [{name: _number(value) for name, value in row.items()} for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected numbers ({error})") from error


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Replaces the file in one step."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text.getvalue())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _number(text: str) -> float:
    value = float(text)
    return int(value) if text.lstrip("-").isdigit() else value
