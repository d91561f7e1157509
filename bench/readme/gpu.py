"""The README's section on GPUs, from the CSV rows of the GPU report under bench/results/cuda-*."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from bench.readme.steps import step_lines
from bench.rows import Row, commits, latency_rows, read_rows

# Table 3 and fig. 10 of the paper: on an RTX 2080 Ti every ViT-S takes this long per image, from 64 to 576 tokens.
PAPER_MS = "6.0"
WORKLOADS = ("256 x 64..196", "512 x 49", "256 x 196", "57 x 576", "32 x 1024")
FORMS = ("", " graph", " compiled", " compiled graph")
LATENCY = (("dense", "1"), ("packed", "1"), ("dense", "256"), ("masked", "256"), ("trimmed", "256"), ("packed", "256"))


def section(results: Path) -> list[str]:
    """Lines of the section; if no GPU has been measured, a paragraph that says so."""
    files = ("attention.csv", "latency_bf16*.csv")
    folders = {path.parent for name in files for path in results.glob(f"cuda-*/{name}")}
    if not folders:
        return _nothing(results / "UNVERIFIED.md")
    folder = max(folders, key=lambda each: max(row["date"] for row in _rows(each)))
    latency, attention, steps = (
        latency_rows(folder),
        read_rows(folder / "attention.csv"),
        read_rows(folder / "train_step.csv"),
    )
    pairs = fastest_pairs(attention)
    quoted = [*steps, *(row for _, _, *pair in pairs for row in pair)]
    quoted += [row for cells in fastest_forms(latency).values() for row in cells if row]
    fact = max(quoted or _rows(folder), key=lambda row: row["date"])
    place = folder.relative_to(results.parent.parent)
    named = commits(quoted)
    lines = _paragraph(
        f"The following figures are from one {fact['machine']} (torch {fact['torch']}, triton {fact['triton']}, "
        f"commit{'s' * (',' in named)} {named}), in bf16. [report.md]({place}/report.md) has all tables, next to their "
        "CSV rows. [docs/gpu.md](docs/gpu.md) describes the method, and `python -m bench.gpu_report` repeats the "
        "measurements."
    )
    if latency:
        lines += ["", *latency_lines(latency)]
        if (folder / "latency_bf16.png").exists():
            lines += ["", f"![Time against tokens on a GPU]({place}/latency_bf16.png)"]
    if pairs:
        lines += ["", *attention_lines(pairs)]
    no_steps = ["The training step has not been measured on a GPU yet."]
    return [*lines, "", *(step_lines(steps) if steps else no_steps)]


def latency_lines(rows: Sequence[Row]) -> list[str]:
    """Milliseconds per image, with the fastest form of dense and packed, and the paper's time."""
    heads = [f"{method}, {'one image' if batch == '1' else f'batch {batch}'}" for method, batch in LATENCY]
    lines = [
        *_paragraph(
            "Milliseconds per image of ViT-S, from uint8 images to logits. The last column is the paper's GPU time "
            "(RTX 2080 Ti), which is the same from 64 to 576 tokens. Masked and trimmed run eagerly. For dense and "
            "packed the table shows the fastest form: eager or as a CUDA graph, compiled or not."
            f"{_compiled(rows)}{_host_time(rows)}"
        ),
        "",
        f"| tokens | GMACs | {' | '.join(heads)} | paper |",
        "|--:" * (len(heads) + 3) + "|",
    ]
    table = fastest_forms(rows)
    for tokens, cells in table.items():
        times = [f"{float(row['all_p50_ms']):.3g}" if row else "" for row in cells]
        gmacs = next(row["gmacs"] for row in rows if (row["method"], row["wanted_tokens"]) == ("packed", tokens))
        lines.append(f"| {tokens} | {float(gmacs):.2f} | {' | '.join(times)} | {PAPER_MS} |")
    best = fastest_form(rows, "packed", "256", "98")
    if best and best["times_compiled"]:
        lines += [
            "",
            f"At batch 256, packed MSViT-S with 98 tokens ({best['method'].removeprefix('packed ')}) is "
            f"{float(best['times_compiled']):.2f}x as fast as the compiled ViT-S/16 with 196 tokens.",
        ]
    return lines


def fastest_forms(rows: Sequence[Row]) -> dict[str, list[Row | None]]:
    """For each number of tokens, the rows quoted in the columns of `LATENCY`."""
    counts = sorted({row["wanted_tokens"] for row in rows if row["method"] == "packed"}, key=int)
    return {tokens: [fastest_form(rows, *column, tokens) for column in LATENCY] for tokens in counts}


def fastest_form(rows: Sequence[Row], method: str, batch: str, tokens: str) -> Row | None:
    """The fastest row of a method at a batch size and number of tokens: eager, compiled, as a graph, or both."""
    names = {method + form for form in FORMS}
    found = [row for row in rows if row["method"] in names and (row["batch"], row["wanted_tokens"]) == (batch, tokens)]
    return min(found, key=lambda row: float(row["all_p50_ms"]), default=None)


def _compiled(rows: Sequence[Row]) -> str:
    """A sentence that lists the numbers of tokens for which each method was compiled."""
    texts = []
    for method, batch in LATENCY:
        names = {f"{method} compiled", f"{method} compiled graph"}
        counts = {row["wanted_tokens"] for row in rows if row["method"] in names and row["batch"] == batch}
        if counts:
            texts.append(f"{method} at batch {batch} with {' and '.join(sorted(counts, key=int))} tokens")
    return f" `torch.compile` was timed only for {'; '.join(texts)}." if texts else ""


def _host_time(rows: Sequence[Row]) -> str:
    """A sentence on the time of one image without a graph."""
    eager = {"dense", "packed"}
    times = [float(row["all_p50_ms"]) for row in rows if row["method"] in eager and row["batch"] == "1"]
    if not times:
        return ""
    return (
        f" Without a graph, one image takes {min(times):.1f} to {max(times):.1f} ms at any number of tokens, because "
        "the host is the limit."
    )


def attention_lines(pairs: Sequence[tuple[str, str, Row, Row]]) -> list[str]:
    """Our fastest backend against the fastest peer, forward and backward."""
    lines = [
        "Attention alone, 6 heads of 64, in CUDA graphs; 256 x 64..196 means 256 sequences of 64 to 196 tokens. The",
        "best peer is the fastest exact attention in torch ([list of peers](docs/gpu.md#peers)). A ratio above 1 means",
        "that ours is faster. Our backward pass includes the gradient of the key weights, which no peer computes. The",
        "ceilings are a device copy and a matrix product timed in the same run; the table shows the nearer one.",
        "",
        "| sequences | pass | ours | µs | of ceiling | best peer | µs | ratio |",
        "|---|---|---|--:|--:|---|--:|--:|",
    ]
    for workload, direction, ours, peer in pairs:
        time, other = float(ours["graph_p50_us"]), float(peer["graph_p50_us"])
        share, ceiling = max((float(ours[f"share_of_{name}"]), name) for name in ("copy", "matmul"))
        lines.append(
            f"| {workload} | {direction} | {ours['method'].partition(' +')[0]} | {time:.1f} | {share:.0%} {ceiling} "
            f"| {peer['method']} | {other:.1f} | {other / time:.2f}x |"
        )
    return lines


def fastest_pairs(rows: Sequence[Row]) -> list[tuple[str, str, Row, Row]]:
    """Workload, direction, our fastest row and the row of the fastest peer."""
    pairs = []
    for workload in WORKLOADS:
        for direction in ("fwd", "bwd"):
            group = [r for r in rows if (r["workload"], r["head_dim"], r["direction"]) == (workload, "64", direction)]
            timed = [row for row in group if row.get("graph_p50_us")]
            mine = [r for r in timed if r["ours"] == "True" and ("+" in r["method"]) == (direction == "bwd")]
            peers = [row for row in timed if row["ours"] == "False" and row["exact"] == "True"]
            if mine and peers:
                ours, peer = (min(each, key=lambda row: float(row["graph_p50_us"])) for each in (mine, peers))
                pairs.append((workload, direction, ours, peer))
    return pairs


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, 118, break_long_words=False, break_on_hyphens=False)


def _rows(folder: Path) -> list[Row]:
    return [*read_rows(folder / "attention.csv"), *latency_rows(folder)]


def _nothing(unverified: Path) -> list[str]:
    with_cuda = "csrc/cuda/" in unverified.read_text(encoding="utf-8") if unverified.exists() else False
    kernels, where = ("CUDA and Triton", "on the CPU, emulated") if with_cuda else ("Triton", "in the interpreter")
    milliseconds = PAPER_MS.removesuffix(".0")
    return [
        f"The paper's GPU time stays at {milliseconds} ms from 64 to 576 tokens. The {kernels} kernels of this "
        "version compile for sm_80, sm_90",
        f"and sm_100 and pass their tests {where}. They have [not yet run on a GPU](bench/results/UNVERIFIED.md), so",
        "there is no GPU table yet; `python -m bench.gpu_report` makes one ([method](docs/gpu.md)).",
    ]
