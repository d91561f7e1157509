"""Everything about this project on a GPU, in one command: build, tests, sanitizers, times against the best there is.

    python bench/gpu_report.py

Parts share the time of --seconds; what one leaves, the next ones have. A part that fails is reported and stops nothing;
the exit code is the number of failed parts. CSV rows, pictures and report.md go to bench/results/<device>. On a machine
without a GPU it tries the same paths on small shapes, says what it skipped, and writes only where --output says.

    python bench/gpu_report.py --tables DIR

measures nothing: it makes DIR/report.md from the CSV rows there, on any machine.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the package may have to be built first

import common  # noqa: E402
import torch  # noqa: E402
from gpu import checks, commands, ncu, summary  # noqa: E402
from gpu.targets import all_targets, commits, read  # noqa: E402
from rich import box  # noqa: E402
from rich.table import Table  # noqa: E402

# Of the time, in parts per hundred. The order is that of the report: what is wrong is known before it is timed.
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


class SkipPart(Exception):  # noqa: N818  no error
    """The part has nothing to do here; the text says why."""


@dataclass
class Report:
    """What all parts share.

    Attributes:
        device: that is measured. quick: small shapes. output: folder of the results, or None.
        notes: what was left out, and findings, by part. outcomes: of the tests.
        log: output of all commands.
    """

    device: torch.device
    quick: bool
    output: Path | None
    notes: dict[str, list[str]] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def note(self, part: str, text: str) -> None:
        self.notes.setdefault(part, []).append(text)
        print(f"  {text}", flush=True)

    def need_gpu(self, what: str) -> None:
        if not self.on_gpu:
            raise SkipPart(f"no GPU: {what}")

    def script(self, part: str, limit: float, script: str, *arguments: object) -> commands.Result:
        """Runs a measuring script. Lines of what it left out become notes."""
        command = commands.python(HERE / script, *map(str, arguments), "--device", self.device.type)
        if self.output is not None:
            command += ["--output", str(self.output)]
        result = commands.run(command, limit)
        self.keep(part, result)
        for line in result.output.splitlines():
            if line.startswith(("left out:", "FAILED")):
                self.note(part, line)
        return result

    def keep(self, part: str, result: commands.Result) -> None:
        self.log += [f"===== {part}: exit code {result.code} after {result.seconds:.1f} s", result.output]


# ---- parts: each takes the report and its seconds, and raises where it fails


def build(report: Report, seconds: float) -> None:
    """Installs the package where the native modules are missing or older than their sources."""
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
    findings = checks.run_sanitizers(seconds)
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
    result = report.script("attention", limit, "gpu/attention.py", "--seconds", seconds, *quick)
    left = seconds - result.seconds
    if (culprit := result.lost_by) and left > 20:
        # What the others take is still worth knowing.
        report.note("attention", f"FAILED the device was lost, or did not answer, with {culprit}; once more without it")
        options = ["--seconds", left, *quick, "--without", culprit]
        report.script("attention", left * 1.3 + 30, "gpu/attention.py", *options)
    require(result, limit)


def require(result: commands.Result, limit: float) -> None:
    """Raises where a command failed."""
    if not result.ok:
        raise RuntimeError(result.failure(limit))


def token_operators(report: Report, seconds: float) -> None:
    """The other operators."""
    quick = ["--quick"] * report.quick
    limit = seconds * 1.3 + 30
    require(report.script("token_operators", limit, "gpu/token_operators.py", "--seconds", seconds, *quick), limit)


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
    require(report.script("latency", limit, "latency.py", *options), limit)


def train_step(report: Report, seconds: float) -> None:
    """A training step in every token mode."""
    options: list[object] = ["--quick"] if report.quick else ["--seconds", seconds * 0.6]
    limit = seconds * 1.3 + 30
    require(report.script("train_step", limit, "train_step.py", *options), limit)


def profile(report: Report, seconds: float) -> None:
    """Hardware counters of our attention kernels."""
    report.need_gpu("hardware counters")
    collected = ncu.collect(seconds)
    if collected is None:
        raise SkipPart("ncu is not installed")
    result, rows = collected
    report.keep("profile", result)
    if rows and report.output is not None:
        common.write_csv(report.output / "profile.csv", rows)
    if not rows:
        raise RuntimeError(result.failure(seconds))


PARTS: dict[str, Callable[[Report, float], None]] = {
    function.__name__: function
    for function in (build, tests, sanitizer, attention, token_operators, latency, train_step, profile)
}


# ---- the report


@dataclass(frozen=True)
class Outcome:
    """Of a part: "passed", "failed" or "skipped", and why."""

    part: str
    status: str
    seconds: float
    why: str = ""


def run_parts(report: Report, names: list[str], seconds: float) -> list[Outcome]:
    """All parts, each with its share of the time that is left."""
    deadline = time.perf_counter() + seconds
    outcomes = []
    for index, name in enumerate(names):
        left = deadline - time.perf_counter()
        share = left * SHARES[name] / sum(SHARES[each] for each in names[index:])
        print(f"=== {name} ({max(share, 0):.0f} s)", flush=True)
        start = time.perf_counter()
        try:
            if share < 2:
                raise SkipPart("the time is over")
            PARTS[name](report, share)
            status, why = "passed", ""
        except SkipPart as reason:
            status, why = "skipped", str(reason)
        except Exception as error:  # one part must not stop the others
            status, why = "failed", f"{error}"
        outcomes.append(Outcome(name, status, time.perf_counter() - start, why))
        print(f"--- {name} {status} after {outcomes[-1].seconds:.0f} s{': ' + why if why else ''}", flush=True)
    return outcomes


def write_report(report: Report, outcomes: list[Outcome], verified: list[tuple[str, str]]) -> None:
    """report.md and report.log."""
    if report.output is None:
        return
    lines = [*heading(common.facts(report.device)), "", "## Parts", ""]
    rows = [[each.part, each.status, f"{each.seconds:.0f} s", each.why] for each in outcomes]
    lines += summary.markdown_table(("part", "", "time", ""), rows, 4)
    lines += ["", *summary.report_lines(report.output, with_targets=report.on_gpu)]
    for part, notes in report.notes.items():
        lines += ["", f"## Notes: {part}", "", *(f"- {note}" for note in notes)]
    if verified:
        lines += ["", "## Covered by the tests that passed", "", *(f"- `{file}` `{name}`" for file, name in verified)]
    report.output.mkdir(parents=True, exist_ok=True)
    (report.output / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (report.output / "report.log").write_text("\n".join(report.log), encoding="utf-8")


def write_tables(folder: Path) -> None:
    """report.md from the CSV rows of a folder.

    Raises:
        ValueError: the folder has none.
    """
    rows = [row for path in folder.glob("*.csv") for row in read(path)]
    if not rows:
        raise ValueError(f"--tables: expected a folder with CSV rows, got {str(folder)!r}")
    newest = max(rows, key=lambda row: row["date"])
    lines = [*heading(newest | {"commit": commits(rows)}), "", *summary.report_lines(folder, with_targets=True)]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def heading(facts: Mapping[str, Any]) -> list[str]:
    """On what and with what the report was made."""
    return [
        f"# GPU report: {facts['machine']}",
        "",
        f"torch {facts['torch']}, triton {facts['triton']}, timm {facts['timm']}, commit {facts['commit']}, "
        f"{facts['date']}. Written by `python bench/gpu_report.py`; what is measured and how: "
        "[docs/gpu.md](../../../docs/gpu.md).",
    ]


def print_end(report: Report, outcomes: list[Outcome], verified: list[tuple[str, str]]) -> None:
    """The short table that comes last."""
    console = common.make_console()
    if verified:
        console.print(f"\nThe passing tests cover these lines of {checks.UNVERIFIED.relative_to(common.ROOT)}:")
        for file, kernel in verified:
            console.print(f"  {file} {kernel}")
    if report.on_gpu and report.output is not None:
        table = Table("what", "target", "measured", "", box=box.SIMPLE_HEAD, padding=(0, 1))
        for target in all_targets(report.output):
            table.add_row(*target.cells())
        console.print(table)
    for each in outcomes:
        console.print(f"{each.part:<16} {each.status:<8} {each.seconds:4.0f} s  {each.why}", markup=False)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    summary_line, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary_line, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=500, help="for everything (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(SHARES), help="with commas between (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small shapes: a smoke test")
    parser.add_argument("--device", help="cpu or cuda; found by itself where not given")
    parser.add_argument("--output", type=Path, help="folder of the results (default on a GPU: bench/results/<device>)")
    parser.add_argument("--tables", type=Path, metavar="DIR", help="only make DIR/report.md from the CSV rows there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the parts; the number of those that failed."""
    arguments = parse_arguments(argv)
    names = arguments.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        sys.exit(f"error: --parts: expected some of {', '.join(PARTS)}, got {unknown[0]!r}")
    try:
        if arguments.tables:
            write_tables(arguments.tables)
            return 0
        device = common.find_device(arguments.device)
    except ValueError as error:
        sys.exit(f"error: {error}")
    output = arguments.output
    if output is None and device.type == "cuda" and not arguments.quick:
        output = common.results_dir(device)
    report = Report(device, arguments.quick or device.type == "cpu", output and output.resolve())
    if device.type == "cpu":
        print("no GPU on this machine: small shapes on the CPU, to try the same paths", flush=True)
    outcomes = run_parts(report, [name for name in PARTS if name in names], arguments.seconds)
    verified = []
    if checks.UNVERIFIED.exists():
        verified = checks.covered(checks.unverified_lines(checks.UNVERIFIED.read_text()), report.outcomes)
    write_report(report, outcomes, verified)
    print_end(report, outcomes, verified)
    return sum(outcome.status == "failed" for outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
