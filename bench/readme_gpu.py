"""The README's section on GPUs, from the CSV rows that bench/gpu_report.py left under bench/results/cuda-*."""

import csv
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, str]
# Table 3 and fig. 10 of the paper: on an RTX 2080 Ti every ViT-S takes this long per image, from 64 to 576 tokens.
PAPER_MS = "6.0"
WORKLOADS = ("256 x 64..196", "512 x 49", "256 x 196", "57 x 576", "32 x 1024")
FORMS = ("", " graph", " compiled", " compiled graph")
LATENCY = (("dense", "1"), ("packed", "1"), ("dense", "256"), ("masked", "256"), ("trimmed", "256"), ("packed", "256"))


def section(results: Path) -> list[str]:
    """Lines of the section; the present state in words where no GPU has been measured."""
    folders = {path.parent for name in ("attention", "latency_bf16") for path in results.glob(f"cuda-*/{name}.csv")}
    if not folders:
        return _nothing(results / "UNVERIFIED.md")
    folder = max(folders, key=lambda each: max(row["date"] for row in _facts(each)))
    fact = _facts(folder)[0]
    place = folder.relative_to(results.parent.parent)
    lines = [
        f"On one {fact['machine']} (torch {fact['torch']}, triton {fact['triton']}, commit {fact['commit']}), bf16,",
        f"measured by `python bench/gpu_report.py`; all rows and tables are in [{place}]({place}/report.md),",
        "how they are measured in [docs/gpu.md](docs/gpu.md).",
    ]
    if rows := read(folder / "latency_bf16.csv"):
        lines += ["", *latency_lines(rows)]
        if (folder / "latency_bf16.png").exists():
            lines += ["", f"![Time against tokens on a GPU]({place}/latency_bf16.png)"]
    if rows := read(folder / "attention.csv"):
        lines += ["", *attention_lines(rows)]
    if rows := read(folder / "train_step.csv"):
        lines += ["", *step_lines(rows)]
    return lines


def read(path: Path) -> list[Row]:
    """Rows of a CSV; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def latency_lines(rows: Sequence[Row]) -> list[str]:
    """Milliseconds per image, of dense and packed in their fastest form, beside the paper's."""
    heads = [f"{method}, {'one image' if batch == '1' else f'batch {batch}'}" for method, batch in LATENCY]
    lines = [
        "Milliseconds per image of ViT-S from uint8 images to logits, beside the paper's GPU column (RTX 2080 Ti).",
        "Dense and packed show their fastest form: eager or compiled by `torch.compile`, launched one by one or as a",
        "CUDA graph; dense was compiled with 196 and 576 tokens only. Masked and trimmed run eager:",
        "",
        f"| tokens | GMACs | {' | '.join(heads)} | paper |",
        "|--:" * (len(heads) + 3) + "|",
    ]
    for tokens in sorted({row["wanted_tokens"] for row in rows if row["method"] == "packed"}, key=int):
        fastest = [fastest_form(rows, method, batch, tokens) for method, batch in LATENCY]
        times = [f"{float(row['all_p50_ms']):.3g}" if row else "" for row in fastest]
        gmacs = next(row["gmacs"] for row in rows if (row["method"], row["wanted_tokens"]) == ("packed", tokens))
        lines.append(f"| {tokens} | {float(gmacs):.2f} | {' | '.join(times)} | {PAPER_MS} |")
    best = fastest_form(rows, "packed", "256", "98")
    if best and best["times_compiled"]:
        lines += [
            "",
            f"At batch 256 packed MSViT-S with 98 tokens ({best['method'].removeprefix('packed ')}) is "
            f"{float(best['times_compiled']):.2f}x as fast as the compiled ViT-S/16 with 196.",
        ]
    return lines


def fastest_form(rows: Sequence[Row], method: str, batch: str, tokens: str) -> Row | None:
    """Of a method at a batch size and number of tokens: eager, compiled, as a graph or both."""
    names = {method + form for form in FORMS}
    found = [row for row in rows if row["method"] in names and (row["batch"], row["wanted_tokens"]) == (batch, tokens)]
    return min(found, key=lambda row: float(row["all_p50_ms"]), default=None)


def attention_lines(rows: Sequence[Row]) -> list[str]:
    """Our fastest backend against the fastest peer, forward and backward."""
    lines = [
        "Attention alone, 6 heads of 64, against the fastest of torch's `varlen_attn`, FlexAttention, nested tensors,",
        "padded SDPA and cuDNN; the backward pass includes the gradient of the key weights, which those do not give.",
        "The floor is that of memory bandwidth and matrix rate measured in the same run:",
        "",
        "| sequences | | µs | floor | best peer | µs | ratio |",
        "|---|---|--:|--:|---|--:|--:|",
    ]
    for workload in WORKLOADS:
        for direction in ("fwd", "bwd"):
            group = [r for r in rows if (r["workload"], r["head_dim"], r["direction"]) == (workload, "64", direction)]
            timed = [row for row in group if row.get("graph_p50_us")]
            mine = [r for r in timed if r["ours"] == "True" and ("+" in r["method"]) == (direction == "bwd")]
            peers = [row for row in timed if row["ours"] == "False" and row["exact"] == "True"]
            if not mine or not peers:
                continue
            ours, peer = (min(each, key=lambda row: float(row["graph_p50_us"])) for each in (mine, peers))
            time, other = float(ours["graph_p50_us"]), float(peer["graph_p50_us"])
            lines.append(
                f"| {workload} | {direction} | {time:.1f} | {float(ours['floor_us']):.1f} | {peer['method']} "
                f"| {other:.1f} | {other / time:.2f}x |"
            )
    return lines


def step_lines(rows: Sequence[Row]) -> list[str]:
    """A sentence on the training step."""
    found = {row["method"]: row for row in rows}
    packed = found["packed"]
    return [
        f"A training step at a target of {packed['target']} (batch {packed['batch']}, gate and its gradient included) "
        f"takes {float(packed['step_p50_ms']):.0f} ms packed,",
        f"{float(found['trimmed']['step_p50_ms']):.0f} ms trimmed, {float(found['masked']['step_p50_ms']):.0f} ms "
        f"masked, and {float(found['plain']['step_p50_ms']):.0f} ms for the plain ViT.",
    ]


def _facts(folder: Path) -> list[Row]:
    return [*read(folder / "attention.csv"), *read(folder / "latency_bf16.csv")]


def _nothing(unverified: Path) -> list[str]:
    with_cuda = "csrc/cuda/" in unverified.read_text(encoding="utf-8") if unverified.exists() else False
    kernels, where = ("CUDA and Triton", "on the CPU, emulated") if with_cuda else ("Triton", "in the interpreter")
    milliseconds = PAPER_MS.removesuffix(".0")
    return [
        f"The paper's GPU column stays at {milliseconds} ms from 64 to 576 tokens. The {kernels} kernels of this "
        "version compile for sm_80, sm_90",
        f"and sm_100 and pass their tests {where}; they have [not yet run on a GPU](bench/results/UNVERIFIED.md), so",
        "there is no GPU table yet: `python bench/gpu_report.py` makes one ([what it measures](docs/gpu.md)).",
    ]
