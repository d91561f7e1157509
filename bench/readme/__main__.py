"""Writes the README's measured tables from the CSV rows under bench/results; --check fails where they differ.

    python bench/readme_table.py [--check]

The tables stand between two comment lines in README.md and are never edited by hand.
"""

import argparse
import csv
import sys
from pathlib import Path

import readme_gpu

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- measured: bench/readme_table.py -->", "<!-- end of measured -->"
METHODS = ("dense", "masked", "trimmed", "packed")
BATCH = "16"
Row = dict[str, str]
# What the table of operators shows: the file, what is measured, and the columns that single out a row of it.
OPERATORS = [
    ("varlen_attention", "attention forward, 16 sequences of 64 to 196", {"shape": "16 x 64..196", "direction": "fwd"}),
    ("varlen_attention", "the same backward, with the weight gradient", {"shape": "16 x 64..196", "direction": "bwd"}),
    ("varlen_attention", "attention forward, 8 sequences of 576", {"shape": "8 x 576", "direction": "fwd"}),
    ("mixed_scale_embed", "embedding of 98 tokens each of 16 uint8 images", {"images": "uint8", "direction": "fwd"}),
    ("unpack_to_grid", "tokens of 16 images to the grid", {"direction": "fwd"}),
]


def read(path: Path) -> list[Row]:
    """Rows of one CSV."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def latency_table(folder: Path) -> list[str]:
    """Milliseconds per image by token count and method, and what packing saves."""
    rows = [row for row in read(folder / "latency_fp32.csv") if row["batch"] == BATCH]
    by_tokens: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_tokens.setdefault(row["wanted_tokens"], {})[row["method"]] = row
    lines = [
        "| tokens | GMACs | dense | masked | trimmed | packed | packed against masked |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for methods in by_tokens.values():
        if set(methods) != set(METHODS):
            continue
        packed = methods["packed"]
        times = [f"{float(methods[name]['all_p50_ms']):.1f}" for name in METHODS]
        cells = [f"{float(packed['tokens']):.0f}", f"{float(packed['gmacs']):.2f}", *times]
        lines.append(f"| {' | '.join(cells)} | {float(packed['times_masked']):.2f}x |")
    return lines


def operator_table(folder: Path) -> list[str]:
    """Each operator against the best that torch offers, in fp32 and bf16."""
    lines = ["| operator | fp32 | bf16 |", "|---|--:|--:|"]
    for name, what, wanted in OPERATORS:
        cells = []
        for dtype in ("fp32", "bf16"):
            row = next(
                row
                for row in read(folder / f"{name}.csv")
                if row["method"] == "cpu" and row["dtype"] == dtype and all(row[k] == v for k, v in wanted.items())
            )
            cells.append(f"{float(row['times_best_torch']):.1f}x")
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return lines


def measured() -> str:
    """The text between the two comment lines."""
    (folder,) = {path.parent for path in (ROOT / "bench" / "results").glob("cpu-*/latency_fp32.csv")}
    fact = read(folder / "latency_fp32.csv")[0]
    lines = [
        f"ViT-S on {fact['machine']}, {fact['threads']} threads, fp32, batch {BATCH}: milliseconds per image, from",
        f"uint8 images to logits (torch {fact['torch']}, timm {fact['timm']}, commit {fact['commit']}).",
        "The dense model sees a smaller image, the others mixed-scale tokens, of 224 px up to 196 tokens and of 384 px",
        "above.",
        "",
        *latency_table(folder),
        "",
        "![Time against tokens](docs/images/latency.png)",
        "",
        *readme_gpu.step_lines(read(folder / "train_step.csv")),
        "",
        "The operators against the fastest way to do the same with torch, on the same machine in one process:",
        "",
        *operator_table(folder),
        "",
        f"Every figure is a row under [{folder.relative_to(ROOT)}]({folder.relative_to(ROOT)}), with its",
        "spread and its share of a roofline measured in the same run. The machine is shared: read ratios.",
        "`bench/latency.py`, `bench/train_step.py` and `bench/bench_*.py` measure them again.",
        "",
        *readme_gpu.section(ROOT / "bench" / "results"),
    ]
    return "\n".join(lines)


def main() -> None:
    """Writes the tables, or compares them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"README.md: expected the lines {BEGIN!r} and {END!r}")
    wanted = f"{before}{BEGIN}\n{measured()}\n{END}{after}"
    if wanted == text:
        print("README.md shows what the CSV rows say")
    elif check:
        sys.exit("README.md differs from the CSV rows: run `python bench/readme_table.py`")
    else:
        README.write_text(wanted)
        print("README.md written")


if __name__ == "__main__":
    main()
