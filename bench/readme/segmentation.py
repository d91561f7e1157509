"""The README's section on Segmenter, from the rows of bench/segmentation.py on a CPU."""

import textwrap
from pathlib import Path

from bench.rows import Row, commits, read_rows

FILE = "segmentation_fp32.csv"
WANTED = {"model": "Seg-S", "image_size": "512", "batch": "1", "masks": "grid"}
METHODS = ("masked", "packed grid", "packed")


def section(results: Path) -> list[str]:
    """Lines of the section; none if no CPU has been measured."""
    found = {path.parent: read_rows(path) for path in results.glob(f"cpu-*/{FILE}")}
    measured = {folder: [row for row in rows if _quoted(row)] for folder, rows in found.items()}
    measured = {folder: rows for folder, rows in measured.items() if rows}
    if not measured:
        return []
    folder = max(measured, key=lambda each: max(row["date"] for row in measured[each]))
    rows = measured[folder]
    fact = rows[0]
    place = (folder / FILE).relative_to(results.parent.parent)
    text = (
        f"Segmenter with ViT-S at 512 px on {fact['machine']} ({fact['threads']} threads, {fact['dtype']}, torch "
        f"{fact['torch']}, commit {commits(rows)}), one image: milliseconds from uint8 pixels to masks of 150 classes "
        "at the resolution of the fine grid, decoder included. Dense is the original with 1024 tokens. Masked and "
        "packed grid replicate coarse tokens before the decoder, as in the paper; packed decodes packed tokens to the "
        f"same masks. [Rows]({place}), made by `bench/segmentation.py`:"
    )
    return [*textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False), "", *table(rows)]


def table(rows: list[Row]) -> list[str]:
    """A line for each number of tokens."""
    by_tokens: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_tokens.setdefault(row["wanted_tokens"], {})[row["method"]] = row
    dense = next((row for row in rows if row["method"] == "dense"), None)
    lines = [
        "| tokens | GMACs | dense | masked | packed grid | packed | speed-up over dense | paper's |",
        "|--:" * 8 + "|",
    ]
    for methods in by_tokens.values():
        if dense is None or not set(METHODS) <= set(methods):
            continue
        packed = methods["packed"]
        times = [f"{float(row['p50_ms']):.0f}" for row in (dense, *(methods[name] for name in METHODS))]
        cells = [f"{float(packed['tokens']):.0f}", f"{float(packed['gmacs']):.1f}", *times]
        cells += [f"{float(packed[name]):.2f}x" for name in ("times_dense_p50", "paper_times_dense") if packed[name]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _quoted(row: Row) -> bool:
    return all(row[name] == value for name, value in WANTED.items())
