"""Command line of an operator bench: checks and times every case, prints a table, writes <operator>.csv."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.command_line import DTYPES, add_device, add_output, make_console, make_parser
from bench.failures import RefusalError, errors_in_one_line
from bench.machine import facts, find_device, results_dir
from bench.operators.cases import Case, CaseMaker, Setting
from bench.operators.rows import Measured, make_rows, print_table
from bench.roofline import Roofline
from bench.rows import write_rows
from bench.timing import interleave


def main(
    operator: str,
    cases: Callable[[Setting], Sequence[CaseMaker]],
    documentation: str | None,
    argv: Sequence[str] | None = None,
) -> None:
    """Runs the bench of an operator.

    Args:
        operator: name of the operator, and of the CSV file.
        cases: function from a setting to the makers of all cases.
        documentation: text of --help.
        argv: command line; if None, that of the process.
    """
    arguments = _parse(documentation, argv)
    console = make_console()
    with errors_in_one_line():
        setting, output = _setting(arguments)
        rows = _run(operator, cases(setting), setting, arguments.seconds, console)
    print_table(operator, rows, console)
    if output is not None:
        path = output / f"{operator}.csv"
        write_rows(path, rows)
        console.print(f"wrote {os.path.relpath(path)}")


def _parse(documentation: str | None, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(documentation)
    add_device(parser)
    parser.add_argument("--dtype", default="fp32,bf16", help=f"some of {', '.join(DTYPES)} (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time limit of a case (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds: a smoke test")
    add_output(parser, "CSV file", "bench/results/<device>; none with --quick")
    return parser.parse_args(argv)


def _setting(arguments: argparse.Namespace) -> tuple[Setting, Path | None]:
    device = find_device(arguments.device)
    dtypes = tuple(arguments.dtype.split(","))
    for name in dtypes:
        if name not in DTYPES:
            raise ValueError(f"--dtype: expected some of {', '.join(DTYPES)}, got {name!r}")
    output = arguments.output
    if output is None and not arguments.quick:
        output = results_dir(device)
    return Setting(device, dtypes, arguments.quick), output


def _run(
    operator: str, makers: Sequence[CaseMaker], setting: Setting, seconds: float, console: Console
) -> list[dict[str, Any]]:
    known = facts(setting.device)
    before = {name: _roofline(name, setting) for name in setting.dtypes}
    measured: list[Measured] = []
    for case in _made(makers, console):
        label = f"{operator} ({', '.join(str(value) for value in case.fields.values())})"
        try:
            case.check()
        except AssertionError as error:
            raise RefusalError(f"{label} is wrong, so it is not timed: {error}") from error
        timer = torch.device("cpu") if case.host else setting.device
        with torch.no_grad():
            samples = interleave(case.methods, timer, 0.1 if setting.quick else seconds, few=case.few)
        measured.append(Measured(case.fields, case.flop, case.bytes, samples))
    rooflines = {name: roofline.best(_roofline(name, setting)) for name, roofline in before.items()}
    # An operator on masks has no dtype of its own: the first roofline serves, because only its copy is used.
    default = rooflines[setting.dtypes[0]]
    return [row | known for each in measured for row in make_rows(operator, each, rooflines.get(each.dtype, default))]


def _roofline(dtype: str, setting: Setting) -> Roofline:
    return Roofline.measure(setting.device, DTYPES[dtype], 0.15 if setting.quick else 1.0)


def _made(makers: Sequence[CaseMaker], console: Console) -> Iterator[Case]:
    """The cases under a progress bar; each is made when its turn comes."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("cases", total=len(makers))
        for make in makers:
            case = make()
            progress.update(task, description=" ".join(str(value) for value in case.fields.values()))
            yield case
            progress.advance(task)
