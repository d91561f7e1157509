"""The table that bench/segmentation.py prints."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

COLUMNS = (
    "tokens",
    "enc. GMACs",
    "paper",
    "GMACs",
    "ms",
    "p20-p80",
    "least",
    "× dense",
    "least",
    "of peak",
    "paper ms",
    "× dense",
)


def print_table(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Prints the rows, one section for each model, batch size and resolution of masks."""
    first = rows[0]
    console.print(
        f"\nSegmenter on {first['machine']} ({first['threads']} threads, {first['dtype']}), images of "
        f"{first['image_size']} px; torch {first['torch']}, commit {first['commit']}"
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for name in ("model", "batch", "masks", "method"):
        table.add_column(name, no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    group: tuple[Any, ...] | None = None
    for row in rows:
        before, group = group, (row["model"], row["batch"], row["masks"])
        if before not in (None, group):
            table.add_section()
        head = map(str, group) if before != group else ("", "", "")
        table.add_row(*head, row["method"], *_cells(row), style="bold" if row["method"] == "packed" else "")
    console.print(table)
    console.print(
        f"Milliseconds per image, ratios of p50 and of the least time. Peak: {first['peak_gflop_s']:.0f} GFLOP/s "
        f"({first['peak_source']}), measured now. The paper's columns are those of its table 4."
    )


def _cells(row: dict[str, Any]) -> list[str]:
    digits = 1 if row["p50_ms"] < 1000 else 0
    return [
        f"{row['tokens']:.1f}".removesuffix(".0"),
        f"{row['encoder_gmacs']:.2f}",
        _text(row["paper_encoder_gmacs"], 1),
        f"{row['gmacs']:.2f}",
        f"{row['p50_ms']:.{digits}f}",
        f"{row['p20_ms']:.{digits}f}-{row['p80_ms']:.{digits}f}",
        f"{row['least_ms']:.{digits}f}",
        *(_text(row[f"times_dense_{name}"], 2) for name in ("p50", "least")),
        f"{row['share_of_peak']:.0%}",
        _text(row["paper_ms"], 1),
        _text(row["paper_times_dense"], 2),
    ]


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
