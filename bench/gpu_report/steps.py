"""Steps of a ladder that are not measuring modules; each runs in a process of its own.

python -m bench.gpu_report.steps tests --seconds 85 --output DIR
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.command_line import make_parser
from bench.gpu_report import checks, ncu, sanitizers
from bench.rows import write_rows


def tests(arguments: argparse.Namespace) -> None:
    """The operators' tests on the device."""
    log = arguments.output / "tests.log"
    _, outcomes = checks.run_tests(arguments.seconds, device=arguments.device, log=log)
    print(checks.count(outcomes))
    print(*[test for test, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")][:40], sep="\n")


def sanitizer(arguments: argparse.Namespace) -> None:
    """compute-sanitizer on the CUDA kernels."""
    findings = sanitizers.run_sanitizers(arguments.seconds, ("memcheck", "racecheck"), "cuda")
    print(*[f"{finding.tool}: {finding.text}" for finding in findings] or ["not installed"], sep="\n")
    sys.exit(sum(not finding.ok for finding in findings))


def counters(arguments: argparse.Namespace) -> None:
    """Hardware counters of the attention kernels."""
    collected = ncu.collect(arguments.seconds)
    if collected is None:
        sys.exit("ncu is not installed")
    result, rows = collected
    if not rows:
        sys.exit(result.output[-1500:])
    write_rows(arguments.output / "profile.csv", rows)
    print(*rows, sep="\n")


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    function.__name__: function for function in (tests, sanitizer, counters)
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one step."""
    parser = make_parser(__doc__)
    parser.add_argument("step", choices=sorted(STEPS), help="name of the step")
    parser.add_argument("--seconds", type=float, required=True, help="time limit of the step")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args(argv)
    STEPS[arguments.step](arguments)


if __name__ == "__main__":
    main()
