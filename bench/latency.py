"""Latency of ViT-S against its number of tokens: dense, masked, trimmed and packed, as in fig. 10 and table 3 of MSViT.

    python bench/latency.py --tokens 64..576

For each number of tokens N it times timm's ViT-S/16 on an image that has N patches (the nearest square), and MSViT-S
(224 px up to 196 tokens, 384 px above) with N tokens per image on average, as near below N as the budget comes; an
entropy gate chooses the regions. "transformer" is the time of the blocks, "all" that of the whole call from uint8
images to logits, gate included. GMACs count active tokens only, and so does the share of the peak.

With --compile packed and dense run through torch.compile too (static shapes), dense where speed-ups refer to it: with
196 and 576 tokens. With --cuda-graph (GPU) they run that way and as CUDA graphs, compiled or not; a replay includes the
copy of the images to where the graph reads them. What matters most compiles first: dense with 196 tokens and packed
with 98, at the largest batch and at one image.

    python bench/latency.py --tokens 98,196 --batch 256 --cuda-graph --seconds 100

Every method takes its turn in each round, and rounds go on until the time is over. The masked model computes every
candidate whatever N is, so that it is timed once for each image size and round, at one N after the other. The CSV is
written again and again, so that a run that is cut off leaves what it has measured.
"""

import argparse
import math
import re
import time
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

_START = time.perf_counter()

import common  # noqa: E402  after the clock is read: importing torch takes seconds of the budget
import torch  # noqa: E402
from plot import plot_latency  # noqa: E402
from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Table  # noqa: E402
from vit_graphs import FORMS, add_forms  # noqa: E402
from vit_methods import (  # noqa: E402
    IMAGE_SIZES,
    MODES,
    Method,
    Stopwatch,
    Zoo,
    image_size,
    methods_for,
    parse_tokens,
    resized,
)

from msvit.data import load_images  # noqa: E402

DEFAULT_TOKENS = "64..576"
MAX_SAMPLES = 50
METHODS = ("dense", *MODES, *FORMS)
MAX_JOIN_SAMPLES, JOIN_SECONDS = 5, 0.5  # of a method that takes part from now on
WRITE_SECONDS = 5  # between two versions of the CSV
Key = tuple[str, int, int]  # method, tokens asked for, batch


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tokens", default=DEFAULT_TOKENS, help="such as 64..576, 64,100,196 or 98 (default: %(default)s)"
    )
    parser.add_argument("--batch", default="1,16", help="batch sizes, with commas between (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="folder of images (default: photographs of scikit-image)")
    parser.add_argument("--device", help="cpu or cuda; found by itself where not given")
    parser.add_argument("--dtype", choices=common.DTYPES, help="default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--compile", action="store_true", help="dense and packed through torch.compile too")
    parser.add_argument("--cuda-graph", action="store_true", help="as --compile, and CUDA graphs of all (GPU)")
    parser.add_argument("--methods", help=f"only these, with commas between: {', '.join(METHODS)}")
    parser.add_argument("--seconds", type=float, default=200, help="for everything (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder of the CSV and PNG (default: bench/results/<device>)")
    return parser.parse_args(argv)


def parse_batches(text: str) -> list[int]:
    """Batch sizes from "1,16".

    Raises:
        ValueError: not numbers from 1 upwards.
    """
    batches = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(batches) < 1:
        raise ValueError(f"--batch: expected numbers from 1 upwards with commas between, got {text!r}")
    return sorted(set(batches))


def parse_methods(text: str | None) -> tuple[str, ...]:
    """Names from "packed graph,dense"; all where there is no text.

    Raises:
        ValueError: a name that no method has.
    """
    names = METHODS if text is None else tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in METHODS:
            raise ValueError(f"--methods: expected some of {', '.join(METHODS)}, got {name!r}")
    return names


# ---- measuring


def image_source(
    folder: Path | None, count: int, device: torch.device, console: Console
) -> Callable[[int], torch.Tensor]:
    """A function from a size in pixels to `count` uint8 images of it; files are read for the two sizes of MSViT."""

    @cache
    def images(size: int) -> torch.Tensor:
        if size not in IMAGE_SIZES:
            return resized(images(min(IMAGE_SIZES)), size)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = load_images(folder, size, limit=count)
        for warning in caught:
            console.print(f"[yellow]{warning.message}[/]")
        if len(loaded) < count:
            console.print(f"{len(loaded)} images for batches of {count}: they are repeated")
        return loaded[torch.arange(count) % len(loaded)].to(device)

    return images


class Sweep:
    """All methods at one batch size, timed in rounds.

    Args:
        rows: methods by number of tokens.
        batch: images of a call.
        zoo: that made the methods.

    Attributes:
        samples: (seconds of the blocks or None, seconds of the call) per image, by method and tokens asked for.
        seconds: that the last round took.
    """

    def __init__(self, rows: list[list[Method]], batch: int, zoo: Zoo) -> None:
        self.batch, self.zoo = batch, zoo
        self.others = [method for row in rows for method in row if method.name != "masked"]
        masked = [method for row in rows for method in row if method.name == "masked"]
        self.masked = [[m for m in masked if m.image_size == size] for size in sorted({m.image_size for m in masked})]
        self.samples: dict[Key, list[tuple[float | None, float]]] = {}
        self.rounds, self.seconds = 0, 0.0

    @property
    def calls_per_round(self) -> int:
        return len(self.others) + len(self.masked)

    @property
    def num_methods(self) -> int:
        return len(self.others) + sum(map(len, self.masked))

    def join(self, methods: list[Method]) -> None:
        """Methods that take part from now on, with first samples, should there be no time for another round."""
        for method in methods:
            self._time(method, [])
            end = time.perf_counter() + JOIN_SECONDS
            for _ in range(MAX_JOIN_SAMPLES):
                self._time(method, [method])
                if time.perf_counter() > end:
                    break
        self.others += methods

    def run(self, advance: Callable[[], None], keep: bool = True, deadline: float = math.inf) -> None:
        """One round, which breaks off after the deadline. With `keep` False it only warms up."""
        start = time.perf_counter()
        turns = [(group[self.rounds % len(group)], group) for group in self.masked]
        turns += [(method, [method]) for method in self.others]
        for method, credited in turns:
            if time.perf_counter() > deadline:
                break
            self._time(method, credited if keep else [])
            advance()
        self.rounds += keep
        self.seconds = time.perf_counter() - start

    def _time(self, method: Method, credited: list[Method]) -> None:
        images = self.zoo.images(method.image_size)
        if self.batch == 1:  # the images in turn, the same one for every method of a round
            index = self.rounds % len(images)
            images = images[index : index + 1]
        blocks, whole = self.zoo.stopwatch.time(method.call, images[: self.batch])
        for credit in credited:
            key = (credit.name, credit.wanted, self.batch)
            self.samples.setdefault(key, []).append((blocks and blocks / self.batch, whole / self.batch))


def first_rounds(sweeps: list[Sweep], deadline: float, progress: Progress) -> None:
    """A round of every batch size, of which the smallest is always complete, the others unless the deadline comes."""
    task = progress.add_task("first round", total=sum(sweep.calls_per_round for sweep in sweeps))
    small = min(sweeps, key=lambda sweep: sweep.batch)
    small.run(lambda: None, keep=False)
    for sweep in sweeps:
        sweep.run(lambda: progress.advance(task), deadline=math.inf if sweep is small else deadline)
    progress.remove_task(task)


def more_rounds(sweeps: list[Sweep], deadline: float, progress: Progress, write: Callable[[], None]) -> None:
    """Rounds of all batch sizes, evenly, until the next would end after the deadline."""
    start = written = time.perf_counter()
    task = progress.add_task("measuring", total=max(deadline - start, 1e-3))
    while fitting := [s for s in sweeps if s.rounds < MAX_SAMPLES and time.perf_counter() + s.seconds < deadline]:
        sweep = min(fitting, key=lambda s: (s.rounds, -s.batch))
        sweep.run(lambda: progress.update(task, completed=time.perf_counter() - start))
        if time.perf_counter() > written + WRITE_SECONDS:
            write()
            written = time.perf_counter()


def seconds_of_rounds(sweeps: Iterable[Sweep], deadline: float) -> float:
    """What compiling should leave: time for five rounds, or half of the time."""
    return min((deadline - time.perf_counter()) / 2, 5 + 5 * sum(sweep.seconds for sweep in sweeps))


# ---- results


def make_rows(
    sweeps: list[Sweep], tables: dict[int, list[list[Method]]], extra: dict[str, Any], roofline: common.Roofline
) -> list[dict[str, Any]]:
    """CSV rows, in the order of the table."""
    rows = []
    for sweep in sweeps:
        times = {key: _columns(samples) for key, samples in sweep.samples.items()}
        for method in (method for group in tables[sweep.batch] for method in group):
            if (method.name, method.wanted, sweep.batch) not in times:
                continue  # the time was over before its turn came
            time_of = times[method.name, method.wanted, sweep.batch]
            p50 = time_of["all_p50_ms"]
            masked = times.get(("masked", method.wanted, sweep.batch))
            reference = times.get(("dense", _reference_tokens(method), sweep.batch))
            compiled = [
                times[key]["all_p50_ms"]
                for name in ("dense compiled", "dense compiled graph")
                if (key := (name, _reference_tokens(method), sweep.batch)) in times
            ]
            rate = 2 * method.gmacs / (p50 / 1e3)
            rows.append(
                {"bench": "latency", "batch": sweep.batch, "wanted_tokens": method.wanted, "method": method.name}
                | {"tokens": method.tokens, "image_size": method.image_size, "gmacs": round(method.gmacs, 4)}
                | {"samples": len(sweep.samples[method.name, method.wanted, sweep.batch]), **time_of}
                | {"times_masked": masked and masked["all_p50_ms"] / p50}
                | {"times_dense": reference and reference["all_p50_ms"] / p50}
                | {"times_compiled": min(compiled) / p50 if compiled else None}
                | {"reference_tokens": _reference_tokens(method), "gflop_s": rate}
                | {"share_of_peak": rate / roofline.peak_gflop_s, **extra}
            )
    return rows


def _columns(samples: list[tuple[float | None, float]]) -> dict[str, float | None]:
    columns: dict[str, float | None] = {}
    for part, seconds in zip(("transformer", "all"), zip(*samples, strict=True), strict=True):
        known = [value for value in seconds if value is not None]
        times = common.quantiles(known) if known else {}
        columns |= {f"{part}_p{q}_ms": times[f"p{q}"] * 1e3 if times else None for q in common.QUANTILES}
    return columns


def _reference_tokens(method: Method) -> int:
    """Tokens of the dense model that the speed-up refers to: all fine, at the image size of MSViT."""
    try:
        return IMAGE_SIZES[image_size(method.wanted)]
    except ValueError:
        return min(IMAGE_SIZES.values(), key=lambda most: abs(most - method.wanted))


def print_table(rows: list[dict[str, Any]], console: Console) -> None:
    """The rows for people."""
    first = rows[0]
    console.print(
        f"\nViT-S on {first['machine']} ({first['threads']} threads, {first['dtype']}), milliseconds per image; "
        f"torch {first['torch']}, commit {first['commit']}"
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for name in ("batch", "N", "method"):
        table.add_column(name, no_wrap=True)
    ratios = {"times_masked": "× masked", "times_dense": "× dense*", "times_compiled": "× compiled*"}
    if all(row["times_compiled"] is None for row in rows):
        del ratios["times_compiled"]
    heads = ("tokens", "GMACs", "transformer", "p20-p80", "all", "p20-p80", *ratios.values(), "of peak")
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    group = None
    for row in rows:
        if group not in (None, (row["batch"], row["wanted_tokens"])):
            table.add_section()
        new, group = group != (row["batch"], row["wanted_tokens"]), (row["batch"], row["wanted_tokens"])
        style = "bold" if row["method"].startswith("packed") else ""
        table.add_row(*(map(str, group) if new else ("", "")), *_cells(row, ratios), style=style)
    console.print(table)
    console.print(
        "* dense ViT-S with 196 tokens where MSViT-S sees 224 px, with 576 where it sees 384 px. "
        f"Peak: {first['peak_gflop_s']:.0f} GFLOP/s ({first['peak_source']}), measured now.",
        highlight=False,
    )


def _cells(row: dict[str, Any], ratios: Iterable[str] = ("times_masked", "times_dense")) -> list[str]:
    cells = [row["method"], f"{row['tokens']:.1f}".removesuffix(".0"), f"{row['gmacs']:.2f}"]
    for part in ("transformer", "all"):
        low, middle, high = (row[f"{part}_p{q}_ms"] for q in common.QUANTILES)
        if middle is None:
            cells += ["", ""]
            continue
        digits = 2 if middle < 10 else 1
        cells += [f"{middle:.{digits}f}", f"{low:.{digits}f}-{high:.{digits}f}"]
    cells += ["" if row[name] is None else f"{row[name]:.2f}" for name in ratios]
    return [*cells, f"{row['share_of_peak']:.0%}"]


def output_path(arguments: argparse.Namespace, device: torch.device, dtype_name: str) -> Path:
    """Of the CSV."""
    name = f"latency_{dtype_name}"
    if DEFAULT_TOKENS not in arguments.tokens.split(","):
        name += "_" + re.sub(r"[^0-9]+", "-", arguments.tokens)
    return (arguments.output or common.results_dir(device)) / f"{name}.csv"


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Everything after the command line is read.

    Raises:
        ValueError: an argument or folder that cannot be used.
        common.RefusalError: the models disagree, or there is nothing that could be timed.
    """
    tokens, batches = parse_tokens(arguments.tokens), parse_batches(arguments.batch)
    wanted, device = parse_methods(arguments.methods), common.find_device(arguments.device)
    if arguments.cuda_graph and device.type != "cuda":
        raise ValueError("--cuda-graph: expected a GPU, got a CPU")
    dtype_name = arguments.dtype or ("bf16" if device.type == "cuda" else "fp32")
    forms = [
        form
        for form in FORMS
        if form in wanted and (arguments.cuda_graph or (arguments.compile and form.endswith("compiled")))
    ]
    deadline = _START + arguments.seconds
    torch.manual_seed(0)
    images = image_source(arguments.images, max(batches + [2]), device, console)
    images(min(IMAGE_SIZES))  # bad folders are an error before anything is built
    with console.status("building and checking the models"), torch.inference_mode():
        zoo = Zoo(images, device, common.DTYPES[dtype_name], Stopwatch(device))
        tables = {}
        for batch in batches:
            tables[batch], notes = methods_for(zoo, tokens, batch)
        for size in sorted({method.image_size for row in tables[batches[0]] for method in row[1:]}):
            zoo.check(size)
        roofline = common.Roofline.measure(device, common.DTYPES[dtype_name])
    plain = {batch: [[m for m in row if m.name in wanted] for row in rows] for batch, rows in tables.items()}
    sweeps = {batch: Sweep(plain[batch], batch, zoo) for batch in batches}
    extra = {"dtype": dtype_name, **common.facts(device)}
    path = output_path(arguments, device, dtype_name)

    def rows_so_far() -> list[dict[str, Any]]:
        return make_rows([*sweeps.values()], tables, roofline.columns() | extra, roofline)

    def write() -> None:
        if rows := rows_so_far():
            common.write_csv(path, rows)

    def join(batch: int, methods: list[Method]) -> None:
        if methods:
            sweeps[batch].join(methods)
            write()

    with _progress(console) as progress:
        first_rounds([*sweeps.values()], deadline, progress)
        write()
        if forms:
            task = progress.add_task("compiling", total=None)
            reserve = seconds_of_rounds(sweeps.values(), deadline)
            notes += add_forms(zoo, tables, deadline, join, reserve=reserve, forms=forms)
            progress.remove_task(task)
        more_rounds([*sweeps.values()], deadline, progress, write)
    for note in notes:
        console.print(f"[yellow]{note}; left out[/]")
    roofline = roofline.best(common.Roofline.measure(device, common.DTYPES[dtype_name]))
    rows = rows_so_far()
    if not rows:
        raise common.RefusalError("none of the methods was timed")
    print_table(rows, console)
    left_out = sum(sweep.num_methods for sweep in sweeps.values()) - len(rows)
    if left_out:
        console.print(f"[yellow]{left_out} rows are missing: {arguments.seconds:g} s were too short; use --seconds[/]")
    write()
    plot_latency(rows, path.with_suffix(".png"))
    console.print(f"wrote {path} and .png after {time.perf_counter() - _START:.0f} s")


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def main() -> None:
    """Runs, and turns what is wrong into one line."""
    arguments = parse_arguments()
    console = common.make_console()
    with common.errors_in_one_line():
        run(arguments, console)


if __name__ == "__main__":
    main()
