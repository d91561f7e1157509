"""The parts of the report: each takes the report and its seconds, and raises if it fails."""

from collections.abc import Callable

from bench.gpu_report import checks, commands, ncu, sanitizers
from bench.gpu_report.report import Report, SkipPart
from bench.rows import write_rows

# Percent of the time, in the order of execution: errors are known before anything is timed.
SHARES = {
    "build": 12,
    "tests": 17,
    "sanitizer": 10,
    "attention": 26,
    "token_operators": 6,
    "latency": 26,
    "train_step": 7,
    "profile": 4,
}


def build(report: Report, seconds: float) -> None:
    """Installs the package if the native modules are missing or older than their sources."""
    why = checks.needs_build()
    if not why:
        raise SkipPart("the native modules are newer than their sources")
    report.need_gpu(f"{why}; build with pip install -e .")
    report.note("build", why)
    # Nothing else is worth much without it.
    limit = max(seconds, 300)
    result = commands.run(commands.install(), limit)
    report.keep("build", result)
    require(result, limit)


def tests(report: Report, seconds: float) -> None:
    """The tests of the GPU backends on the device."""
    report.need_gpu("the tests of CUDA and Triton kernels run in the interpreter with pytest")
    result, report.outcomes = checks.run_tests(seconds)
    report.keep("tests", result)
    report.note("tests", checks.count(report.outcomes))
    for test in [test for test, outcome in report.outcomes.items() if outcome in ("FAILED", "ERROR")][:20]:
        report.note("tests", f"FAILED {test}")
    require(result, seconds)


def sanitizer(report: Report, seconds: float) -> None:
    """compute-sanitizer with every tool."""
    report.need_gpu("compute-sanitizer")
    findings = sanitizers.run_sanitizers(seconds)
    if not findings:
        raise SkipPart("compute-sanitizer is not installed")
    for finding in findings:
        report.keep(f"sanitizer {finding.tool}", finding.result)
        report.note("sanitizer", f"{finding.tool}: {finding.text}")
    wrong = [finding.tool for finding in findings if not finding.ok]
    if wrong:
        raise RuntimeError(f"not clean: {', '.join(wrong)}")


def attention(report: Report, seconds: float) -> None:
    """`varlen_attention` against every peer."""
    quick = ["--quick"] * report.quick
    limit = seconds * 1.3 + 30
    result = report.module("attention", limit, "gpu_report.attention", "--seconds", seconds, *quick)
    left = seconds - result.seconds
    if (culprit := result.lost_by) and left > 20:
        # The other backends and peers are still timed.
        report.note(
            "attention", f"FAILED the device was lost or did not respond with {culprit}; running again without it"
        )
        options = ["--seconds", left, *quick, "--without", culprit]
        report.module("attention", left * 1.3 + 30, "gpu_report.attention", *options)
    require(result, limit)


def require(result: commands.Result, limit: float) -> None:
    """Raises RuntimeError if a command failed."""
    if not result.ok:
        raise RuntimeError(result.failure(limit))


def token_operators(report: Report, seconds: float) -> None:
    """The other operators."""
    quick = ["--quick"] * report.quick
    limit = seconds * 1.3 + 30
    require(report.module("token_operators", limit, "gpu_report.token_operators", "--seconds", seconds, *quick), limit)


def latency(report: Report, seconds: float) -> None:
    """ViT-S: dense, masked, trimmed, packed; graphs and the compiled dense model on a GPU."""
    if report.on_gpu:
        options: list[object] = ["--tokens", "64..576,98", "--batch", "1,16,256", "--cuda-graph"]
        options += ["--dtype", "bf16", "--seconds", seconds]
    else:
        options = ["--tokens", "64", "--batch", "1", "--seconds", 2]
        if report.output is None:
            raise SkipPart("no --output, and bench/latency.py always writes")
    limit = seconds * 1.2 + 45
    require(report.module("latency", limit, "latency", *options), limit)


def train_step(report: Report, seconds: float) -> None:
    """A training step in every token mode."""
    options: list[object] = ["--quick"] if report.quick else ["--seconds", seconds * 0.6]
    limit = seconds * 1.3 + 30
    require(report.module("train_step", limit, "train_step", *options), limit)


def profile(report: Report, seconds: float) -> None:
    """Hardware counters of our attention kernels."""
    report.need_gpu("hardware counters")
    collected = ncu.collect(seconds)
    if collected is None:
        raise SkipPart("ncu is not installed")
    result, rows = collected
    report.keep("profile", result)
    if rows and report.output is not None:
        write_rows(report.output / "profile.csv", rows)
    if not rows:
        raise RuntimeError(result.failure(seconds))


PARTS: dict[str, Callable[[Report, float], None]] = {
    function.__name__: function
    for function in (build, tests, sanitizer, attention, token_operators, latency, train_step, profile)
}
