"""The table that bench/latency.py prints."""

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.timing import QUANTILES


def print_table(rows: list[dict[str, Any]], console: Console) -> None:
    """Prints the rows, one section for each batch size and number of tokens."""
    first = rows[0]
    console.print(
        f"\nViT-S on {first['machine']} ({first['threads']} threads, {first['dtype']}), milliseconds per image; "
        f"torch {first['torch']}, commit {first['commit']}"
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for name in ("batch", "N", "method"):
        table.add_column(name, no_wrap=True)
    ratios = {"times_masked": "× masked", "times_dense": "× dense*", "times_compiled": "× compiled*"}
    if all(row["times_compiled"] is None for row in rows):
        del ratios["times_compiled"]
    heads = ("tokens", "GMACs", "transformer", "p20-p80", "all", "p20-p80", *ratios.values(), "of peak")
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    group = None
    for row in rows:
        if group not in (None, (row["batch"], row["wanted_tokens"])):
            table.add_section()
        new, group = group != (row["batch"], row["wanted_tokens"]), (row["batch"], row["wanted_tokens"])
        style = "bold" if row["method"].startswith("packed") else ""
        table.add_row(*(map(str, group) if new else ("", "")), *cells(row, ratios), style=style)
    console.print(table)
    console.print(
        "* dense ViT-S with 196 tokens if MSViT-S gets 224 px, with 576 tokens if it gets 384 px. "
        f"Peak: {first['peak_gflop_s']:.0f} GFLOP/s ({first['peak_source']}), measured now.",
        highlight=False,
    )


def cells(row: dict[str, Any], ratios: Iterable[str] = ("times_masked", "times_dense")) -> list[str]:
    """The cells of a row after batch and requested tokens; empty if there is no time or ratio."""
    cells = [row["method"], f"{row['tokens']:.1f}".removesuffix(".0"), f"{row['gmacs']:.2f}"]
    for part in ("transformer", "all"):
        low, middle, high = (row[f"{part}_p{q}_ms"] for q in QUANTILES)
        if middle is None:
            cells += ["", ""]
            continue
        digits = 2 if middle < 10 else 1
        cells += [f"{middle:.{digits}f}", f"{low:.{digits}f}-{high:.{digits}f}"]
    cells += ["" if row[name] is None else f"{row[name]:.2f}" for name in ratios]
    return [*cells, f"{row['share_of_peak']:.0%}"]
