"""A ladder for a GPU that is at hand for minutes: three calls, in the order of what would be missed most.

    python3 bench/gpu/first.py --call 1 --seconds 150 --output DIR

    1  facts; every kernel against fp64, in processes of their own; attention at the headline and four more workloads
    2  the operators' tests and the sanitizers, side by side; the model's claim; counters; configurations of Triton
    3  attention with every peer, the other operators, the training step, latency of ViT-S: the tables of the README

What a step finds is written when it is known, into at most eight files; a step that fails, hangs or loses the device
stops no other. The last lines say how each step ended. With --device cpu the same steps run on small shapes through the
emulator and the interpreter, if their variables are set (docs/cuda.md): the rehearsal.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]  # bench, and packages that need not be installed

from gpu import commands  # noqa: E402

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
# Of call 1, each in a process of its own: jobs of small_shapes.py, dtypes.
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
FEW_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of steps side by side
HEADLINES = "256 x 64..196;512 x 49;256 x 196;57 x 576;32 x 1024;64 x 144..576"


@dataclass(frozen=True)
class Step:
    """A command with its limit in seconds."""

    name: str
    command: Sequence[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Ladder:
    """One call: where it writes, until when, and how its steps ended."""

    output: Path
    device: str
    deadline: float
    endings: list[str] = field(default_factory=list)

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def say(self, text: str) -> None:
        """Prints a line and keeps it."""
        line = f"[{self.left:6.1f} s left] {text}"
        print(line, flush=True)
        with (self.output / "ladder.log").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def run(self, step: Step, alone: bool = True) -> commands.Result:
        """One step; its output goes to steps.log, and if it is alone to a file of its own until it ends."""
        limit = min(step.limit, self.left)
        if limit < 2:
            result = commands.Result(None, "", 0)
        else:
            running = self.output / "running.log" if alone else None
            result = commands.run(step.command, limit, step.environment, running)
            with (self.output / "steps.log").open("a", encoding="utf-8") as file:
                file.write(f"===== {step.name}: {' '.join(step.command)}\n{result.output}\n")
            if running:
                running.unlink()
        ending = "ok" if result.ok else result.failure(limit)
        self.endings.append(f"{step.name}: {ending} after {result.seconds:.1f} s")
        self.say(self.endings[-1])
        return result

    def at_once(self, steps: Sequence[Step], workers: int = 8) -> list[commands.Result]:
        """Several steps side by side: nothing of them is timed."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(partial(self.run, alone=False), steps))

    def show(self, result: commands.Result, lines: int = 80) -> None:
        """The end of what a step printed."""
        self.say("\n" + "\n".join(result.output.splitlines()[-lines:]))

    def script(self, name: str, limit: float, script: str, *arguments: object) -> Step:
        """A step that runs a measuring script into the output folder."""
        words = [*map(str, arguments), "--device", self.device, "--output", str(self.output)]
        return Step(name, commands.python(HERE.parent / script, *words), limit)

    def own(self, name: str, seconds: float) -> Step:
        """A step that is one of `OWN`, in a process of its own, which has ten seconds more than the step."""
        step = self.script(name, seconds + 10, "gpu/first.py", "--only", name, "--seconds", seconds)
        return replace(step, environment=FEW_THREADS)


# ---- the calls


def first(ladder: Ladder) -> None:
    """Facts, correctness, headline times."""
    show_facts(ladder)
    lines = ladder.output / "kernels.jsonl"
    script = commands.python(HERE / "small_shapes.py", "--device", ladder.device, "--json", str(lines))
    checks = KERNEL_CHECKS
    if ladder.device == "cpu":  # the emulator takes a second for what a GPU does in no time
        checks = (("cuda-attention-32", "bf16"), ("triton-layout,triton-unpack,triton-embed-float32", "fp32"))
    steps = [
        Step(f"{dtype} {jobs}", [*script, "--jobs", jobs, "--dtypes", dtype], 30, FEW_THREADS) for jobs, dtype in checks
    ]
    ladder.at_once(steps)
    for line in kernel_lines(lines):
        ladder.say(line)
    which = ("--quick",) if ladder.device == "cpu" else ("--workloads", HEADLINES)
    methods = "cpu" if ladder.device == "cpu" else "cuda,triton,varlen_attn flash,sdpa padded cudnn,cudnn thd"
    attention(ladder, min(ladder.left - 15, 60), "--methods", methods, *which)


def second(ladder: Ladder) -> None:
    """Tests and sanitizers; the model; counters; configurations."""
    steps = [ladder.own(name, 85) for name in ("tests", "sanitizers")]
    for result in ladder.at_once(steps):
        ladder.show(result, 25)
    if ladder.device == "cpu":
        options: tuple[object, ...] = ("--tokens", "64", "--batch", "1", "--seconds", 5)
    else:
        options = ("--tokens", "98,196", "--batch", "256", "--cuda-graph", "--dtype", "bf16", "--seconds", 70)
    result = ladder.run(ladder.script("latency", 100, "latency.py", *options))
    ladder.show(result, 30)
    if ladder.device == "cuda":
        ladder.show(ladder.run(ladder.own("counters", 25)), 12)
        seconds = min(ladder.left - 5, 60)
        command = commands.python(HERE / "tune.py", "--seconds", seconds, "--output", ladder.output)
        ladder.show(ladder.run(Step("tune", command, ladder.left)), 40)


def third(ladder: Ladder) -> None:
    """The README's tables."""
    quick = ("--quick",) if ladder.device == "cpu" else ()
    whole = ladder.left
    attention(ladder, 0.3 * whole, *quick)
    tokens = ("--tokens", "64", "--batch", "1")
    if ladder.device == "cuda":
        tokens = ("--tokens", "64..576,98", "--batch", "1,256", "--cuda-graph", "--dtype", "bf16")
    scripts = (
        ("train_step", 0.06, 0.2, "train_step.py", quick),
        ("latency", 0.3, 0.34, "latency.py", tokens),
        ("token_operators", 0.1, 1.0, "gpu/token_operators.py", quick),
    )
    for name, share, most, script, options in scripts:
        ladder.show(ladder.run(ladder.script(name, most * whole, script, "--seconds", share * whole, *options)))


def tests(arguments: argparse.Namespace) -> None:
    """The operators' tests on the device."""
    from gpu import checks

    log = arguments.output / "tests.log"
    _, outcomes = checks.run_tests(arguments.seconds, device=arguments.device, log=log)
    print(checks.count(outcomes))
    print(*[test for test, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")][:40], sep="\n")


def sanitizers(arguments: argparse.Namespace) -> None:
    """compute-sanitizer on the CUDA kernels."""
    from gpu import checks

    findings = checks.run_sanitizers(arguments.seconds, ("memcheck", "racecheck"), "cuda")
    print(*[f"{finding.tool}: {finding.text}" for finding in findings] or ["not installed"], sep="\n")
    sys.exit(sum(not finding.ok for finding in findings))


def counters(arguments: argparse.Namespace) -> None:
    """Hardware counters of the attention kernels."""
    import common
    from gpu import ncu

    collected = ncu.collect(arguments.seconds)
    if collected is None:
        sys.exit("ncu is not installed")
    result, rows = collected
    if not rows:
        sys.exit(result.output[-1500:])
    common.write_csv(arguments.output / "profile.csv", rows)
    print(*rows, sep="\n")


OWN: dict[str, Callable[[argparse.Namespace], None]] = {
    function.__name__: function for function in (tests, sanitizers, counters)
}
CALLS: dict[int, Callable[[Ladder], None]] = {1: first, 2: second, 3: third}


def attention(ladder: Ladder, seconds: float, *options: object) -> None:
    """Times of attention; once more without the backend or peer that has lost the device."""
    until = time.monotonic() + seconds
    without: list[str] = []
    for _ in range(2):
        arguments = ["--seconds", until - time.monotonic(), *options, "--without", ",".join(without)]
        limit = until - time.monotonic() + 15
        result = ladder.run(ladder.script("attention", limit, "gpu/attention.py", *arguments))
        ladder.say("\n" + "\n".join(line for line in result.output.splitlines() if "preparing:" not in line))
        if not result.lost_by:
            return
        without.append(result.lost_by)


def show_facts(ladder: Ladder) -> None:
    """What is installed; builds the native modules if those that came along cannot be imported."""
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
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--call", type=int, choices=sorted(CALLS), help="which of the three")
    parser.add_argument("--only", choices=sorted(OWN), help="one step instead")
    parser.add_argument("--seconds", type=float, default=150, help="for all of it (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args(argv)
    if (arguments.call is None) == (arguments.only is None):
        parser.error("expected either --call or --only")
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.only:
        OWN[arguments.only](arguments)
        return
    ladder = Ladder(arguments.output.resolve(), arguments.device, time.monotonic() + arguments.seconds)
    try:
        CALLS[arguments.call](ladder)
    finally:
        print("\n".join(ladder.endings), flush=True)


if __name__ == "__main__":
    main()
