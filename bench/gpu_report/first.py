"""Three calls for a GPU that is available for a few minutes, the most important results first.

    python3 -m bench.gpu_report.first --call 1 --seconds 150 --output DIR

    1  facts; every kernel against fp64, in processes of their own; attention at the headline and four more workloads
    2  operator tests and sanitizers in parallel; headline latency of the model; counters; configurations of Triton
    3  attention with every peer, the other operators, the training step, latency of ViT-S: the tables of the README

Results are written as soon as they are known, into at most eight files. If a step fails, hangs or loses the device, the
other steps still run. The last lines show how each step ended. For a rehearsal, --device cpu runs the same steps on
small shapes with the emulator and the interpreter, under `python -m tests.cuda_emulator` (docs/cuda.md).
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.command_line import make_parser
from bench.gpu_report import commands
from bench.gpu_report.ladder import FEW_THREADS, Ladder, Step

FACTS = """
import importlib, shutil, time, torch
print(*(shutil.which(name) for name in ("gcc", "nvcc", "ncu", "compute-sanitizer", "ninja")))
packages = "timm", "triton", "numpy", "cudnn", "hypothesis", "xdist", "pytest_timeout"
for name in (*packages, "msvit_kernels._C", "msvit_kernels._cuda"):
    begin = time.perf_counter()
    try:
        module = importlib.import_module(name)
        print(name, getattr(module, "__version__", ""), f"{time.perf_counter() - begin:.1f} s")
    except Exception as error:
        print(name, "cannot be imported:", type(error).__name__, str(error)[:300])
if torch.cuda.is_available():
    print(torch.cuda.get_device_properties(0), "cudnn", torch.backends.cudnn.version())
import msvit_kernels
print(msvit_kernels.explain())
"""
# Jobs of small_shapes.py and their dtypes; each pair has a process of its own in call 1.
KERNEL_CHECKS = (
    ("cuda-attention-64,cuda-attention-32", "bf16"),
    ("triton-attention-64,triton-attention-32", "bf16"),
    ("cuda-attention-128,cuda-attention-long", "bf16"),
    ("triton-attention-128,triton-attention-long", "bf16"),
    ("triton-layout,triton-unpack", "bf16"),
    ("triton-embed-uint8,triton-embed-float32", "bf16"),
    ("cuda-attention-64,cuda-attention-128", "fp16"),
    ("triton-attention-64", "fp32"),
    ("triton-embed-uint8,triton-embed-float32", "fp32"),
)
HEADLINES = "256 x 64..196;512 x 49;256 x 196;57 x 576;32 x 1024;64 x 144..576"


def first(ladder: Ladder) -> None:
    """Facts, correctness, headline times."""
    show_facts(ladder)
    lines = ladder.output / "kernels.jsonl"
    script = commands.module("gpu_report.small_shapes", "--device", ladder.device, "--json", str(lines))
    jobs_and_dtypes: tuple[tuple[str, str], ...] = KERNEL_CHECKS
    if ladder.device == "cpu":  # the emulator takes seconds for them
        jobs_and_dtypes = (("cuda-attention-32", "bf16"), ("triton-layout,triton-unpack,triton-embed-float32", "fp32"))
    steps = [
        Step(f"{dtype} {jobs}", [*script, "--jobs", jobs, "--dtypes", dtype], 30, FEW_THREADS)
        for jobs, dtype in jobs_and_dtypes
    ]
    ladder.at_once(steps)
    for line in kernel_lines(lines):
        ladder.say(line)
    which = ("--quick",) if ladder.device == "cpu" else ("--workloads", HEADLINES)
    methods = "cpu" if ladder.device == "cpu" else "cuda,triton,varlen_attn flash,sdpa padded cudnn,cudnn thd"
    attention(ladder, min(ladder.left - 15, 60), "--methods", methods, *which)


def second(ladder: Ladder) -> None:
    """Tests and sanitizers; the model; counters; configurations."""
    steps = [ladder.own(name, 85) for name in ("tests", "sanitizer")]
    for result in ladder.at_once(steps):
        ladder.show(result, 25)
    if ladder.device == "cpu":
        options: tuple[object, ...] = ("--tokens", "64", "--batch", "1", "--seconds", 5)
    else:
        options = ("--tokens", "98,196", "--batch", "256", "--cuda-graph", "--dtype", "bf16", "--seconds", 70)
    result = ladder.run(ladder.module("latency", 100, "latency", *options))
    ladder.show(result, 30)
    if ladder.device == "cuda":
        ladder.show(ladder.run(ladder.own("counters", 25)), 12)
        seconds = min(ladder.left - 5, 60)
        command = commands.module("gpu_report.tune", "--seconds", str(seconds), "--output", ladder.output)
        ladder.show(ladder.run(Step("tune", command, ladder.left)), 40)


def third(ladder: Ladder) -> None:
    """The README's tables."""
    quick = ("--quick",) if ladder.device == "cpu" else ()
    whole = ladder.left
    attention(ladder, 0.3 * whole, *quick)
    tokens: tuple[str, ...] = ("--tokens", "64", "--batch", "1")
    if ladder.device == "cuda":
        tokens = ("--tokens", "64..576,98", "--batch", "1,256", "--cuda-graph", "--dtype", "bf16")
    steps = (
        ("train_step", 0.06, 0.2, "train_step", quick),
        ("latency", 0.3, 0.34, "latency", tokens),
        ("token_operators", 0.1, 1.0, "gpu_report.token_operators", quick),
    )
    for name, share, most, module, options in steps:
        ladder.show(ladder.run(ladder.module(name, most * whole, module, "--seconds", share * whole, *options)))


CALLS: dict[int, Callable[[Ladder], None]] = {1: first, 2: second, 3: third}


def attention(ladder: Ladder, seconds: float, *options: object) -> None:
    """Times attention; if a backend or peer loses the device, times it once more without that one."""
    until = time.monotonic() + seconds
    without: list[str] = []
    for _ in range(2):
        arguments = ["--seconds", until - time.monotonic(), *options, "--without", ",".join(without)]
        limit = until - time.monotonic() + 15
        result = ladder.run(ladder.module("attention", limit, "gpu_report.attention", *arguments))
        ladder.say("\n" + "\n".join(line for line in result.output.splitlines() if "preparing:" not in line))
        if not result.lost_by:
            return
        without.append(result.lost_by)


def show_facts(ladder: Ladder) -> None:
    """Shows what is installed; builds the native modules if the given ones cannot be imported."""
    if program := shutil.which("nvidia-smi"):
        query = [program, "--query-gpu=name,driver_version,memory.total,clocks.sm,power.limit", "--format=csv,noheader"]
        ladder.say(commands.run(query, 10).output.strip())
    for attempt in (1, 2):
        result = ladder.run(Step("facts", commands.python("-c", FACTS), 40))
        ladder.say("\n" + result.output.strip())
        missing = [name for name in ("_C", "_cuda") if f"msvit_kernels.{name} cannot" in result.output]
        if attempt == 2 or not missing or ladder.device == "cpu":
            return
        ladder.say(f"builds {', '.join(missing)}")
        ladder.run(Step("build", commands.install(), 100))


def kernel_lines(path: Path) -> list[str]:
    """One line for each kernel: how many results were right, and the first that was not."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    lines = []
    for kernel in sorted({row["kernel"] for row in rows}):
        mine = [row for row in rows if row["kernel"] == kernel]
        wrong = [row for row in mine if not row["ok"]]
        lines.append(f"{kernel}: {len(mine) - len(wrong)} of {len(mine)} right" + "".join(
            f"; {row['dtype']} {row['error'][:200]}" for row in wrong[:2]))  # fmt: skip
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one call."""
    parser = make_parser(__doc__)
    parser.add_argument("--call", type=int, choices=sorted(CALLS), required=True, help="number of the call, 1 to 3")
    parser.add_argument("--seconds", type=float, default=150, help="time limit of the call (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args(argv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    ladder = Ladder(arguments.output.resolve(), arguments.device, time.monotonic() + arguments.seconds)
    try:
        CALLS[arguments.call](ladder)
    finally:
        print("\n".join(ladder.endings), flush=True)


if __name__ == "__main__":
    main()
