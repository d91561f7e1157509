"""One run of bench/latency.py: builds and checks the models, times them until the time is over, writes in between."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.command_line import DTYPES
from bench.failures import RefusalError
from bench.machine import facts
from bench.roofline import Roofline
from bench.rows import write_rows
from bench.vit.forms import Tables, add_forms
from bench.vit.images import image_source
from bench.vit.latency_rows import make_rows
from bench.vit.latency_table import print_table
from bench.vit.plot import plot_latency
from bench.vit.stopwatch import Stopwatch
from bench.vit.sweep import Sweep, first_rounds, more_rounds, seconds_of_rounds
from bench.vit.tokens import IMAGE_SIZES
from bench.vit.zoo import Method, Zoo, methods_for


@dataclass(frozen=True)
class Request:
    """The command line, checked.

    Attributes:
        tokens: numbers of tokens.
        batches: batch sizes.
        methods: names of the methods that are wanted.
        forms: the names of compiled or captured methods among them.
        images: folder of images; if None, photographs of scikit-image.
        device: device of the models.
        dtype_name: dtype of the weights, a key of `command_line.DTYPES`.
        seconds: time limit, counted from `start`.
        start: value of `time.perf_counter`.
        path: CSV file to write; the picture is written next to it.
    """

    tokens: list[int]
    batches: list[int]
    methods: tuple[str, ...]
    forms: list[str]
    images: Path | None
    device: torch.device
    dtype_name: str
    seconds: float
    start: float
    path: Path

    @property
    def deadline(self) -> float:
        return self.start + self.seconds

    def roofline(self) -> Roofline:
        """The ceilings in the dtype, measured now."""
        return Roofline.measure(self.device, DTYPES[self.dtype_name])


class Measurement:
    """The models of a request, their samples, and the rows made of them.

    Raises:
        ValueError: a folder of images that cannot be used.
        RefusalError: the token modes of a model disagree.
    """

    def __init__(self, request: Request, console: Console) -> None:
        self.request, self.console = request, console
        torch.manual_seed(0)
        images = image_source(request.images, max([*request.batches, 2]), request.device, console)
        images(min(IMAGE_SIZES))  # raises an error for a bad folder before anything is built
        self.tables: Tables = {}
        self.notes: list[str] = []
        with console.status("building and checking the models"), torch.inference_mode():
            self.zoo = Zoo(images, request.device, DTYPES[request.dtype_name], Stopwatch(request.device))
            for batch in request.batches:
                self.tables[batch], self.notes = methods_for(self.zoo, request.tokens, batch)
            first = self.tables[request.batches[0]]
            for size in sorted({method.image_size for row in first for method in row[1:]}):
                self.zoo.check(size)
            self.roofline = request.roofline()
        self.sweeps = {
            batch: Sweep([[m for m in row if m.name in request.methods] for row in rows], batch, self.zoo)
            for batch, rows in self.tables.items()
        }
        self.facts = {"dtype": request.dtype_name, **facts(request.device)}

    def rows(self) -> list[dict[str, Any]]:
        """CSV rows of the samples so far."""
        extra = self.roofline.columns() | self.facts
        return make_rows([*self.sweeps.values()], self.tables, extra, self.roofline)

    def write(self) -> None:
        """Writes the rows so far, if there are any."""
        if rows := self.rows():
            write_rows(self.request.path, rows)

    def join(self, batch: int, methods: list[Method]) -> None:
        """Adds methods to the rounds of a batch size."""
        if methods:
            self.sweeps[batch].join(methods)
            self.write()

    def take(self) -> None:
        """Takes samples until the deadline, and adds the compiled and captured forms after the first round."""
        deadline, forms, sweeps = self.request.deadline, self.request.forms, [*self.sweeps.values()]
        with _progress(self.console) as progress:
            first_rounds(sweeps, deadline, progress)
            self.write()
            if forms:
                task = progress.add_task("compiling", total=None)
                reserve = seconds_of_rounds(sweeps, deadline)
                self.notes += add_forms(self.zoo, self.tables, deadline, self.join, reserve=reserve, forms=forms)
                progress.remove_task(task)
            more_rounds(sweeps, deadline, progress, self.write)
        self.roofline = self.roofline.best(self.request.roofline())


def run(request: Request, console: Console) -> None:
    """Measures, then writes the CSV, the table and the picture.

    Raises:
        ValueError: a folder of images that cannot be used.
        RefusalError: the models disagree, or no method was timed.
    """
    measurement = Measurement(request, console)
    measurement.take()
    for note in measurement.notes:
        console.print(f"[yellow]{note}; left out[/]")
    rows = measurement.rows()
    if not rows:
        raise RefusalError("none of the methods was timed")
    print_table(rows, console)
    left_out = sum(sweep.num_methods for sweep in measurement.sweeps.values()) - len(rows)
    if left_out:
        console.print(f"[yellow]{left_out} rows are missing: {request.seconds:g} s were too short; use --seconds[/]")
    measurement.write()
    plot_latency(rows, request.path.with_suffix(".png"))
    console.print(f"wrote {request.path} and .png after {time.perf_counter() - request.start:.0f} s")


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True)
