"""CSV rows of benches: files that may not exist yet, columns taken from the rows, short numbers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msvit_kernels import files

Row = dict[str, str]  # as read: every value is text


def read_rows(path: Path) -> list[Row]:
    """Rows of a CSV file by column; none if there is no such file."""
    return files.read_rows(path) if path.exists() else []


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a CSV file in one step and creates its folder if necessary. A value that a row lacks stays empty."""
    shown = [{name: _plain(value) for name, value in row.items()} for row in rows]
    columns = list(dict.fromkeys(name for row in shown for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_rows(path, columns, shown)


def latency_rows(folder: Path) -> list[Row]:
    """Rows of every latency_bf16*.csv; only the newest row of a method with the same tokens and batch."""
    rows = [row for path in sorted(folder.glob("latency_bf16*.csv")) for row in read_rows(path)]
    rows.sort(key=lambda row: row["date"])
    return list({(row["method"], row["wanted_tokens"], row["batch"]): row for row in rows}.values())


def commits(rows: Sequence[Row]) -> str:
    """Every commit that rows come from, in the order of their dates."""
    return ", ".join(dict.fromkeys(row["commit"] for row in sorted(rows, key=lambda row: row["date"])))


def _plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
