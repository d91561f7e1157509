"""One command for a GPU: build, tests, sanitizers, and times against every peer.

    python -m bench.gpu_report

Parts share the time of --seconds; if a part needs less than its share, the following parts get the rest. If a part
fails, the others still run; the exit code is the number of failed parts. CSV rows, pictures and report.md go to
bench/results/<device>. On a machine without a GPU, the same code runs on small shapes on the CPU, the output lists the
skipped parts, and results are written only into --output.

    python -m bench.gpu_report --tables DIR

This form measures nothing and writes DIR/report.md from the CSV rows there, on any machine.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from bench import ROOT
from bench.command_line import add_device, add_output, make_console, make_parser
from bench.gpu_report import checks
from bench.gpu_report.pages import Outcome, write_report, write_tables
from bench.gpu_report.parts import PARTS, SHARES
from bench.gpu_report.report import Report, SkipPart
from bench.gpu_report.targets import all_targets
from bench.machine import find_device, results_dir


def run_parts(report: Report, names: list[str], seconds: float) -> list[Outcome]:
    """Runs all parts, each with its share of the time that is left."""
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


def print_end(report: Report, outcomes: list[Outcome], verified: list[tuple[str, str]]) -> None:
    """Prints verified kernels, targets and outcomes."""
    console = make_console()
    if verified:
        console.print(f"\nThe passing tests cover these lines of {checks.UNVERIFIED.relative_to(ROOT)}:")
        for file, kernel in verified:
            console.print(f"  {file} {kernel}")
    if report.on_gpu and report.output is not None:
        table = Table("figure", "target", "measured", "", box=box.SIMPLE_HEAD, padding=(0, 1))
        for target in all_targets(report.output):
            table.add_row(*target.cells())
        console.print(table)
    for each in outcomes:
        console.print(f"{each.part:<16} {each.status:<8} {each.seconds:4.0f} s  {each.why}", markup=False)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=500, help="time limit of the run (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(SHARES), help="parts, separated by commas (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small shapes: a smoke test")
    add_device(parser)
    add_output(parser, "results", "on a GPU bench/results/<device>, else none")
    parser.add_argument("--tables", type=Path, metavar="DIR", help="only write DIR/report.md from the CSV rows there")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts and returns the number of failed parts, the exit code."""
    arguments = parse_arguments(argv)
    names = arguments.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        sys.exit(f"error: --parts: expected some of {', '.join(PARTS)}, got {unknown[0]!r}")
    try:
        if arguments.tables:
            write_tables(arguments.tables)
            return 0
        device = find_device(arguments.device)
    except ValueError as error:
        sys.exit(f"error: {error}")
    output = arguments.output
    if output is None and device.type == "cuda" and not arguments.quick:
        output = results_dir(device)
    report = Report(device, arguments.quick or device.type == "cpu", output.resolve() if output else None)
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
