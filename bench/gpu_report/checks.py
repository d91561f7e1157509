"""The build and the tests on the device, without which a time means nothing."""

import importlib.util
import os
import re
from pathlib import Path

from bench import RESULTS, ROOT
from bench.gpu_report import commands
from msvit_kernels import dispatch

# Files of the tests that run on a GPU, in the order in which they are distributed: the most important ones first.
GPU_TESTS = (
    "varlen_attention",
    "varlen_attention_edges",
    "mixed_scale_embed",
    "mixed_scale_layout",
    "unpack_to_grid",
    "gpu",
)
UNVERIFIED = RESULTS / "UNVERIFIED.md"
_OUTCOME = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
# "tests/a.py::b[c] PASSED [ 10%]", with pytest-xdist "[gw0] [ 10%] PASSED tests/a.py::b[c]"
_LINES = (
    re.compile(rf"^(?P<test>tests/\S+?::.+?) (?P<outcome>{_OUTCOME})\b"),
    re.compile(rf"^\[gw\d+\][^A-Z]*(?P<outcome>{_OUTCOME}) (?P<test>tests/.+?)\s*$"),
)


def needs_build(root: Path = ROOT) -> str:
    """The reason why the native modules must be built; empty if they are newer than their sources."""
    sources = [path for path in (root / "csrc").rglob("*") if path.suffix in (".cu", ".cuh", ".cpp", ".h", ".cmake")]
    newest = max((path.stat().st_mtime for path in sources), default=0.0)
    wanted = ["_C"] + (["_cuda"] if commands.find("nvcc") else [])
    for name in wanted:
        built = list((root / "msvit_kernels").glob(f"{name}.*.so"))
        if not built:
            return f"{name} is missing"
        if max(path.stat().st_mtime for path in built) < newest:
            return f"{name} is older than its sources"
    return ""


def parse_outcomes(output: str) -> dict[str, str]:
    """Outcome by test, from the complete or partial output of `pytest -v`."""
    found = {}
    for line in output.splitlines():
        for pattern in _LINES:
            if match := pattern.match(line):
                found[match["test"]] = match["outcome"]
    return found


def run_tests(limit: float, device: str = "cuda", log: Path | None = None) -> tuple[commands.Result, dict[str, str]]:
    """Runs the operator tests of the GPU backends on the device; index tensors are checked before every kernel.

    Args:
        limit: seconds, after which no further test runs; outcomes so far are kept.
        device: "cuda"; "cpu" uses the emulator and the interpreter, for a rehearsal.
        log: file that gets a line as each test ends, so that outcomes outlive this process.
    """
    result = commands.run(pytest_command(limit, device), limit, {"MSVIT_CHECK": "1"}, log)
    return result, parse_outcomes(result.output)


def pytest_command(limit: float, device: str) -> list[str]:
    """The command of `run_tests`."""
    backends = ("cuda", "triton", "reference") if device == "cuda" else ("cuda", "triton")
    command = ["-m", "pytest", "-v", *(f"tests/kernels/test_{name}.py" for name in GPU_TESTS)]
    command += ["-k", " or ".join(f"{backend}-{device}" for backend in backends), "--durations", "15"]
    # Nothing is written into the working tree, and no unused plugin is loaded, as that takes time.
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark", "-o", "addopts=", "--tb", "short"]
    # By a thread, because no signal is handled while a process waits for a kernel: only that process ends.
    command += ["--timeout", str(int(min(max(limit / 2, 30), 300))), "--timeout-method", "thread"]
    if importlib.util.find_spec("xdist"):
        # In order, a few tests at a time: consecutive tests share the kernels that Triton compiles.
        command += ["-n", str(workers(os.cpu_count() or 1)), "--dist", "load", "--maxschedchunk", "8"]
    return commands.python(*command)


def workers(cores: int) -> int:
    """Number of test processes: each has its own context on the device, and compilers need cores too."""
    return max(1, min(12, cores - 2))


def count(outcomes: dict[str, str]) -> str:
    """Summary of the outcomes, such as "120 passed, 3 skipped"."""
    words = {outcome: list(outcomes.values()).count(outcome) for outcome in _OUTCOME.split("|")}
    return ", ".join(f"{number} {word.lower()}" for word, number in words.items() if number) or "no test ran"


def unverified_lines(text: str) -> list[tuple[str, str]]:
    """(file, kernel) of each line of the table in UNVERIFIED.md."""
    return re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", text, re.MULTILINE)


def covered(lines: list[tuple[str, str]], outcomes: dict[str, str]) -> list[tuple[str, str]]:
    """Lines whose operator and backend have passed on a GPU without a failed test."""
    done = []
    for file, kernel in lines:
        path = Path(file)
        backend = path.parent.name
        operator = next((name for name in dispatch.OPERATORS if path.stem.startswith(name)), None)
        mine = [
            outcome
            for test, outcome in outcomes.items()
            if test.startswith(f"tests/kernels/test_{operator}") and f"{backend}-cuda" in test
        ]
        if "PASSED" in mine and not {"FAILED", "ERROR"} & set(mine):
            done.append((file, kernel))
    return done
