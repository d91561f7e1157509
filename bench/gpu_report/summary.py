"""Markdown tables of a report, made from its CSV rows."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.gpu_report.targets import Target, all_targets
from bench.rows import Row, commits, latency_rows, read_rows


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int = 1) -> list[str]:
    """Lines of a table; columns from `numbers_from` on are aligned to the right."""
    marks = ["---" if i < numbers_from else "--:" for i in range(len(heads))]
    return [f"| {' | '.join(line)} |" for line in (heads, marks, *rows)]


def attention_lines(rows: Sequence[Row]) -> list[str]:
    """One table for each workload and direction, fastest first."""
    lines: list[str] = []
    groups = dict.fromkeys((row["workload"], row["head_dim"], row["direction"]) for row in rows)
    for workload, head_dim, direction in groups:
        group = [r for r in rows if (r["workload"], r["head_dim"], r["direction"]) == (workload, head_dim, direction)]
        group.sort(key=lambda row: float(row.get("graph_p50_us") or row["eager_p50_us"]))
        first = group[0]
        lines += ["", f"### {direction}, {workload}, {first['num_heads']} heads of {head_dim}, {first['dtype']}: floor "
                  f"{float(first['floor_us']):.1f} µs", ""]  # fmt: skip
        heads = ("method", "graph µs", "p20-p80", "eager µs", "GB/s", "TFLOP/s", "of copy", "of matmul", "of floor",
                 "× best peer", "")  # fmt: skip
        lines += markdown_table(heads, (_attention_cells(row) for row in group))
    return lines


def _attention_cells(row: Row) -> list[str]:
    method = f"**{row['method']}**" if row["ours"] == "True" else row["method"]
    ratio = row.get("graph_times_best_peer") or row.get("eager_times_best_peer")
    cells = [method, _text(row, "graph_p50_us", ".1f"), "", _text(row, "eager_p50_us", ".1f")]
    if row.get("graph_p20_us"):
        cells[2] = f"{float(row['graph_p20_us']):.1f}-{float(row['graph_p80_us']):.1f}"
    cells += [_text(row, "gb_s", ".0f"), _text(row, "tflop_s", ".1f")]
    cells += [_text(row, name, ".0%") for name in ("share_of_copy", "share_of_matmul", "share_of_floor")]
    return [*cells, f"{float(ratio):.2f}" if ratio else "", row["note"]]


def operator_lines(rows: Sequence[Row]) -> list[str]:
    """All operators but attention in one table."""
    heads = ("operator", "method", "graph µs", "eager µs", "GB/s", "of floor", "× best torch")
    cells = [
        [
            " ".join(filter(None, (row["operator"], row["images"], row["direction"]))), row["method"],
            _text(row, "graph_p50_us", ".1f"), _text(row, "eager_p50_us", ".1f"), _text(row, "gb_s", ".0f"),
            _text(row, "share_of_floor", ".0%"), _text(row, "times_best_torch", ".2f"),
        ]
        for row in rows
    ]  # fmt: skip
    return markdown_table(heads, cells, 2)


def latency_lines(rows: Sequence[Row]) -> list[str]:
    """Milliseconds per image of every method, one table for each batch size."""
    lines: list[str] = []
    if len(dict.fromkeys(row["commit"] for row in rows)) > 1:
        lines += [f"These tables combine runs of commits {commits(rows)}. The host time differs between runs."]
    for batch in dict.fromkeys(row["batch"] for row in rows):
        mine = [row for row in rows if row["batch"] == batch]
        methods = list(dict.fromkeys(row["method"] for row in mine))
        tokens = sorted({row["wanted_tokens"] for row in mine}, key=int)
        found = {(row["wanted_tokens"], row["method"]): row for row in mine}
        cells = (
            [count, *(_text(found.get((count, method)), "all_p50_ms", ".4g") for method in methods)] for count in tokens
        )
        lines += ["", f"### batch {batch}: milliseconds per image", ""]
        lines += markdown_table(("tokens", *methods), cells, 0)
    return lines


def step_lines(rows: Sequence[Row]) -> list[str]:
    """The training step of every method."""
    heads = ("method", "tokens", "ms per step", "images/s", "× masked", "× plain", "peak MB")
    columns = (("tokens", ".1f"), ("step_p50_ms", ".1f"), ("images_per_s", ".0f"), ("times_masked", ".2f"),
               ("times_plain", ".2f"), ("peak_mb", ".0f"))  # fmt: skip
    cells = ([row["method"], *(_text(row, name, spec) for name, spec in columns)] for row in rows)
    return markdown_table(heads, cells)


def profile_lines(rows: Sequence[Row]) -> list[str]:
    """Hardware counters of our kernels."""
    columns = (("time_us", ".1f"), ("dram_read_mb", ".1f"), ("dram_write_mb", ".1f"), ("dram_share", ".0f"),
               ("occupancy", ".0f"), ("tensor_share", ".0f"), ("registers", ".0f"))  # fmt: skip
    heads = ("kernel", "µs", "read MB", "written MB", "DRAM %", "occupancy %", "tensor pipe %", "registers", "stalls")
    cells = ([f"`{row['kernel']}`", *(_text(row, name, spec) for name, spec in columns), row["stalls"]] for row in rows)
    return [
        f"One launch of each kernel with a cold cache, at commit {commits(rows)}.",
        "",
        *markdown_table(heads, cells),
    ]


def tune_lines(rows: Sequence[Row]) -> list[str]:
    """The three fastest configurations of each Triton kernel and workload, and the one that was in use."""
    cells = []
    for key in dict.fromkeys((row["workload"], row["kernel"], row["weighted"]) for row in rows):
        group = [row for row in rows if (row["workload"], row["kernel"], row["weighted"]) == key]
        group.sort(key=lambda row: float(row["p50_us"]))
        used = next((row for row in group if row["usual"] == "True"), None)
        kernel = key[1] + ", key weight" * (key[2] == "True")
        fastest = [_configuration(row) for row in group[:3]]
        cells.append([key[0], kernel, *fastest, *[""] * (3 - len(fastest)), _configuration(used) if used else ""])
    return [
        "Each cell: µs in a CUDA graph, BLOCK_M x BLOCK_N, warps (w), stages (s), and the register limit (r).",
        "",
        *markdown_table(("workload", "kernel", "fastest", "second", "third", "in use at that time"), cells, 2),
    ]


def _configuration(row: Row) -> str:
    bound = f" r{row['maxnreg']}" if row.get("maxnreg") else ""
    tile = f"{row['BLOCK_M']}x{row['BLOCK_N']} w{row['num_warps']} s{row['num_stages']}"
    return f"**{float(row['p50_us']):.1f}** {tile}{bound}"


def target_lines(targets: Sequence[Target]) -> list[str]:
    """Target, measured value and verdict."""
    return markdown_table(("figure", "target", "measured", ""), (target.cells() for target in targets))


def report_lines(folder: Path, with_targets: bool) -> list[str]:
    """All tables whose CSV files are in the folder; `with_targets` adds the targets for a GPU."""
    parts = (
        ("Attention", read_rows(folder / "attention.csv"), attention_lines),
        ("Other operators", read_rows(folder / "token_operators.csv"), operator_lines),
        ("Latency of ViT-S", latency_rows(folder), latency_lines),
        ("Training step", read_rows(folder / "train_step.csv"), step_lines),
        ("Hardware counters, attention at the headline shape", read_rows(folder / "profile.csv"), profile_lines),
        ("Configurations of the Triton attention", read_rows(folder / "tune.csv"), tune_lines),
    )
    lines = ["## Targets", "", *target_lines(all_targets(folder)), ""] if with_targets else []
    lines += ["## Files", "", *file_lines(folder)]
    for title, rows, make in parts:
        if rows:
            lines += ["", f"## {title}", "", *make(rows)]
    return lines


def file_lines(folder: Path) -> list[str]:
    """Commit, newest date and number of rows of each CSV file."""
    files = [(path.name, read_rows(path)) for path in sorted(folder.glob("*.csv"))]
    cells = ([name, commits(rows), max(row["date"] for row in rows), str(len(rows))] for name, rows in files if rows)
    return markdown_table(("file", "commit", "date", "rows"), cells, 3)


def _text(row: Row | None, column: str, spec: str) -> str:
    return format(float(row[column]), spec) if row and row.get(column) else ""
