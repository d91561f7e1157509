"""The README's section on CPUs."""

from pathlib import Path

from bench.readme.steps import step_lines
from bench.rows import Row, read_rows

METHODS = ("dense", "masked", "trimmed", "packed")
BATCH = "16"
# Rows of the operator table: the CSV file, the label, and the columns that identify one of its rows.
OPERATORS = [
    ("varlen_attention", "attention forward, 16 sequences of 64 to 196", {"shape": "16 x 64..196", "direction": "fwd"}),
    ("varlen_attention", "the same backward, with key-weight gradient", {"shape": "16 x 64..196", "direction": "bwd"}),
    ("varlen_attention", "attention forward, 8 sequences of 576", {"shape": "8 x 576", "direction": "fwd"}),
    ("mixed_scale_embed", "embedding of 16 uint8 images, 98 tokens each", {"images": "uint8", "direction": "fwd"}),
    ("unpack_to_grid", "tokens of 16 images unpacked to a grid", {"direction": "fwd"}),
]


def latency_table(folder: Path) -> list[str]:
    """Milliseconds per image by token count and method, and the speed-up of packing over masking."""
    rows = [row for row in read_rows(folder / "latency_fp32.csv") if row["batch"] == BATCH]
    by_tokens: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_tokens.setdefault(row["wanted_tokens"], {})[row["method"]] = row
    lines = [
        "| tokens | GMACs | dense | masked | trimmed | packed | speed-up over masked |",
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
    """Speed-up of each operator over the fastest alternative in torch, in fp32 and bf16."""
    lines = ["| operator | fp32 | bf16 |", "|---|--:|--:|"]
    for name, label, wanted in OPERATORS:
        cells = []
        for dtype in ("fp32", "bf16"):
            row = next(
                row
                for row in read_rows(folder / f"{name}.csv")
                if row["method"] == "cpu" and row["dtype"] == dtype and all(row[k] == v for k, v in wanted.items())
            )
            cells.append(f"{float(row['times_best_torch']):.1f}x")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def section(results: Path) -> list[str]:
    """Lines of the section on the CPU that was measured."""
    (folder,) = {path.parent for path in results.glob("cpu-*/latency_fp32.csv")}
    place = folder.relative_to(results.parent.parent)
    fact = read_rows(folder / "latency_fp32.csv")[0]
    return [
        f"ViT-S on {fact['machine']}, {fact['threads']} threads, fp32, batch {BATCH}: milliseconds per image, from",
        f"uint8 images to logits (torch {fact['torch']}, timm {fact['timm']}, commit {fact['commit']}).",
        "The dense model gets a smaller image. The others get mixed-scale tokens of a 224 px image, or of a 384 px",
        "image above 196 tokens.",
        "",
        *latency_table(folder),
        "",
        "![Time against tokens](docs/images/latency.png)",
        "",
        *step_lines(read_rows(folder / "train_step.csv")),
        "",
        "Speed-up of the operators over the fastest alternative in torch, timed in one process on the same machine:",
        "",
        *operator_table(folder),
        "",
        f"Every figure comes from a CSV row in [{place}]({place}),",
        "which also has its spread and its share of a roofline measured in the same run. Timings are noisy; compare",
        "ratios. `bench/latency.py`, `bench/train_step.py` and `bench/bench_*.py` repeat the measurements.",
    ]
