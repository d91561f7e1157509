"""What the three operator benches share: a case with its competing methods, the check before it, rows and tables."""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from msvit_kernels import testing


@dataclass
class Case:
    """One row group: methods that do the same work on the same inputs.

    Attributes:
        fields: columns that identify the case, "dtype" among them.
        methods: by name; names of alternatives in plain torch begin with "torch".
        check: raises AssertionError where a method of this project is wrong.
        flop, bytes: that the work needs at least, 0 where that says nothing.
        host: time what the host spends on a call, without waiting for a GPU.
        few: methods of which three samples are enough.
    """

    fields: dict[str, Any]
    methods: dict[str, Callable[[], Any]]
    check: Callable[[], None]
    flop: float = 0
    bytes: float = 0
    host: bool = False
    few: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What the command line asks for."""

    device: torch.device
    dtypes: tuple[str, ...]
    quick: bool


def backends_to_time(operator: str, device: torch.device, dtype: torch.dtype, **details: Any) -> list[str]:
    """Backends that the table says run here, without GPU kernels run on a CPU, whose times mean nothing."""
    found = testing.backends_for(operator, device.type, dtype, **details)
    return [name for name in found if device.type == "cuda" or name not in ("triton", "cuda")]


def check_baseline(name: str, actual: Tensor, oracle: Tensor) -> None:
    """Raises AssertionError where an alternative computes something else; its rounding is its own affair."""
    error = (actual.detach().double() - oracle).norm() / oracle.norm()
    assert error < 0.02, f"{name}: relative error {float(error):.3g} against fp64: the baseline does other work"


def gradients(call: Callable[[], Tensor], leaves: Sequence[Tensor], grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """The backward pass alone: the graph is built once and kept."""
    with torch.enable_grad():
        out = call()
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def step(call: Callable[[], Tensor], leaves: Sequence[Tensor], grad: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward pass, as in training."""

    def forward_and_backward() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return torch.autograd.grad(call(), leaves, grad)

    return forward_and_backward


CaseMaker = Callable[[], Case]


def main(operator: str, cases: Callable[[Setting], Sequence[CaseMaker]], description: str) -> None:
    """Command line of an operator bench: checks and times every case, prints tables, writes <operator>.csv."""
    arguments = _parse(description)
    console = common.make_console()
    with common.errors_in_one_line():
        setting, output = _setting(arguments)
        rows = _run(operator, cases(setting), setting, arguments.seconds, console)
    _print(operator, rows, console)
    if output is not None:
        path = output / f"{operator}.csv"
        common.write_csv(path, rows)
        console.print(f"wrote {os.path.relpath(path)}")


def _parse(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", help="cpu or cuda; found by itself where not given")
    parser.add_argument("--dtype", help=f"one or several of {', '.join(common.DTYPES)}, with commas between")
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring for each case (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds: a smoke test")
    parser.add_argument("--output", type=Path, help="folder of the CSV; bench/results/<device> unless quick")
    return parser.parse_args()


def _setting(arguments: argparse.Namespace) -> tuple[Setting, Path | None]:
    device = common.find_device(arguments.device)
    dtypes = tuple((arguments.dtype or "fp32,bf16").split(","))
    for name in dtypes:
        if name not in common.DTYPES:
            raise ValueError(f"--dtype: expected some of {', '.join(common.DTYPES)}, got {name!r}")
    output = arguments.output
    if output is None and not arguments.quick:
        output = common.results_dir(device)
    return Setting(device, dtypes, arguments.quick), output


def _run(
    operator: str, makers: Sequence[CaseMaker], setting: Setting, seconds: float, console: Console
) -> list[dict[str, Any]]:
    facts = common.facts(setting.device)
    before = {name: _roofline(name, setting) for name in setting.dtypes}
    measured: list[tuple[dict[str, Any], dict[str, list[float]], float, float]] = []
    for case in _made(makers, console):
        label = f"{operator} ({', '.join(str(value) for value in case.fields.values())})"
        try:
            case.check()
        except AssertionError as error:
            raise common.RefusalError(f"{label} is wrong, so it is not timed: {error}") from error
        timer = torch.device("cpu") if case.host else setting.device
        with torch.no_grad():
            samples = common.interleave(case.methods, timer, 0.1 if setting.quick else seconds, few=case.few)
        measured.append((case.fields, samples, case.flop, case.bytes))
    rooflines = {name: roofline.best(_roofline(name, setting)) for name, roofline in before.items()}
    return [row for results in measured for row in _rows(operator, *results, rooflines[results[0]["dtype"]], facts)]


def _roofline(dtype: str, setting: Setting) -> common.Roofline:
    return common.Roofline.measure(setting.device, common.DTYPES[dtype], 0.15 if setting.quick else 1.0)


def _made(makers: Sequence[CaseMaker], console: Console) -> Iterator[Case]:
    """The cases one after the other, each made when its turn comes, under a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("cases", total=len(makers))
        for make in makers:
            case = make()
            progress.update(task, description=" ".join(str(value) for value in case.fields.values()))
            yield case
            progress.advance(task)


def _rows(
    operator: str,
    fields: dict[str, Any],
    samples: dict[str, list[float]],
    flop: float,
    moved: float,
    roofline: common.Roofline,
    facts: dict[str, Any],
) -> list[dict[str, Any]]:
    times = {name: common.quantiles(values) for name, values in samples.items()}
    torch_times = [time["p50"] for name, time in times.items() if name.startswith("torch")]
    best_torch = min(torch_times, default=None)
    rows = []
    for name, time in times.items():
        row = {"bench": operator, **fields, "method": name, "samples": len(samples[name])}
        row |= {f"{quantile}_us": value * 1e6 for quantile, value in time.items()}
        row["times_best_torch"] = best_torch / time["p50"] if best_torch else None
        row["times_reference"] = times["reference"]["p50"] / time["p50"] if "reference" in times else None
        row["gflop_s"] = flop / time["p50"] / 1e9 if flop else None
        row["share_of_peak"] = flop / time["p50"] / 1e9 / roofline.peak_gflop_s if flop else None
        row["gb_s"] = moved / time["p50"] / 1e9 if moved else None
        row["share_of_copy"] = moved / time["p50"] / 1e9 / roofline.copy_gb_s if moved else None
        rows.append(row | roofline.columns() | facts)
    return rows


_SHOWN: dict[str, tuple[str, Callable[[Any], str]]] = {
    "p50_us": ("p50 µs", "{:.1f}".format),
    "p20_us": ("p20", "{:.1f}".format),
    "p80_us": ("p80", "{:.1f}".format),
    "times_best_torch": ("× best torch", "{:.2f}".format),
    "times_reference": ("× reference", "{:.2f}".format),
    "gflop_s": ("GFLOP/s", "{:.1f}".format),
    "share_of_peak": ("of peak", "{:.0%}".format),
    "gb_s": ("GB/s", "{:.1f}".format),
    "share_of_copy": ("of copy", "{:.0%}".format),
}


def _print(operator: str, rows: list[dict[str, Any]], console: Console) -> None:
    first = rows[0]
    title = f"{operator} on {first['machine']}, {first['threads']} threads, torch {first['torch']}, {first['commit']}"
    console.print(f"\n{title}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    shown = {name: head for name, head in _SHOWN.items() if any(row[name] is not None for row in rows)}
    identity = list(first)[1 : list(first).index("samples")]
    for name in identity:
        table.add_column(name.replace("_", " "), no_wrap=True)
    for head, _ in shown.values():
        table.add_column(head, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        group = tuple(row[name] for name in identity[:-1])
        if previous is not None and group != previous:
            table.add_section()
        cells = ["" if group == previous else str(row[name]) for name in identity[:-1]] + [str(row["method"])]
        previous = group
        for name, (_, text) in shown.items():
            cells.append("" if row[name] is None else text(row[name]))
        table.add_row(*cells)
    console.print(table)
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        row = next(row for row in rows if row["dtype"] == dtype)
        console.print(
            f"roofline {dtype}: {row['peak_gflop_s']} GFLOP/s ({row['peak_source']}), copy {row['copy_gb_s']} GB/s"
        )
