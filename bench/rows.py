"""CSV rows: one reader and one writer for benches, reports and tests."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, str]  # as read: every value is text


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV file by column; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a CSV file: a header, then one line for each row. A value that a row lacks stays empty.

    A run that is stopped leaves the old file or the new one, never a part of it.
    """
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    unfinished.replace(path)


def latency_rows(folder: Path) -> list[Row]:
    """Rows of every latency_bf16*.csv; the newest if a method was timed again with the same tokens and batch."""
    rows = [row for path in sorted(folder.glob("latency_bf16*.csv")) for row in read_rows(path)]
    rows.sort(key=lambda row: row["date"])
    return list({(row["method"], row["wanted_tokens"], row["batch"]): row for row in rows}.values())


def commits(rows: Sequence[Row]) -> str:
    """Every commit that rows come from, in the order of their dates."""
    return ", ".join(dict.fromkeys(row["commit"] for row in sorted(rows, key=lambda row: row["date"])))


def _plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
