"""Latency of ViT-S against its number of tokens: dense, masked, trimmed and packed, as in fig. 10 and table 3 of MSViT.

    python bench/latency.py --tokens 64..576

For each number of tokens N it times timm's ViT-S/16 on an image that has N patches (the nearest square), and MSViT-S
(224 px up to 196 tokens, 384 px above) with N tokens per image on average, as near below N as the budget comes; an
entropy gate chooses the regions. "transformer" is the time of the blocks, "all" that of the whole call from uint8
images to logits, gate included. GMACs count active tokens only, and so does the share of the peak.

With --cuda-graph (GPU) dense and packed run as CUDA graphs too, and the dense model through torch.compile where
speed-ups refer to it: with 196 and 576 tokens. A replay includes the copy of the images to where the graph reads them.

Every method takes its turn in each round, and rounds go on until the time is over. The masked model computes every
candidate whatever N is, so that it is timed once for each image size and round, at one N after the other.
"""

import argparse
import math
import re
import time
import warnings
from collections.abc import Callable
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
from vit_graphs import add_graphs  # noqa: E402
from vit_methods import (  # noqa: E402
    IMAGE_SIZES,
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
    parser.add_argument("--cuda-graph", action="store_true", help="graphs and the compiled dense model too (GPU)")
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


def measure(sweeps: list[Sweep], deadline: float, console: Console) -> None:
    """Rounds of all batch sizes, evenly, until the next would end after the deadline.

    The first round of the smallest batch is always complete, that of the others unless the deadline comes.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        start = time.perf_counter()
        first = sum(sweep.calls_per_round for sweep in sweeps)
        task = progress.add_task("first round", total=first)
        small = min(sweeps, key=lambda sweep: sweep.batch)
        small.run(lambda: None, keep=False)
        for sweep in sweeps:
            sweep.run(lambda: progress.advance(task), deadline=math.inf if sweep is small else deadline)
        progress.update(task, description="measuring", total=max(deadline - start, 1e-3))
        while fitting := [s for s in sweeps if s.rounds < MAX_SAMPLES and time.perf_counter() + s.seconds < deadline]:
            sweep = min(fitting, key=lambda s: (s.rounds, -s.batch))
            sweep.run(lambda: progress.update(task, completed=time.perf_counter() - start))


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
    heads = ("tokens", "GMACs", "transformer", "p20-p80", "all", "p20-p80", "× masked", "× dense*", "of peak")
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    group = None
    for row in rows:
        if group not in (None, (row["batch"], row["wanted_tokens"])):
            table.add_section()
        new, group = group != (row["batch"], row["wanted_tokens"]), (row["batch"], row["wanted_tokens"])
        table.add_row(
            *(map(str, group) if new else ("", "")), *_cells(row), style="bold" if row["method"] == "packed" else ""
        )
    console.print(table)
    console.print(
        "* dense ViT-S with 196 tokens where MSViT-S sees 224 px, with 576 where it sees 384 px. "
        f"Peak: {first['peak_gflop_s']:.0f} GFLOP/s ({first['peak_source']}), measured now.",
        highlight=False,
    )


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["method"], f"{row['tokens']:.1f}".removesuffix(".0"), f"{row['gmacs']:.2f}"]
    for part in ("transformer", "all"):
        low, middle, high = (row[f"{part}_p{q}_ms"] for q in common.QUANTILES)
        if middle is None:
            cells += ["", ""]
            continue
        digits = 2 if middle < 10 else 1
        cells += [f"{middle:.{digits}f}", f"{low:.{digits}f}-{high:.{digits}f}"]
    cells += ["" if row[name] is None else f"{row[name]:.2f}" for name in ("times_masked", "times_dense")]
    return [*cells, f"{row['share_of_peak']:.0%}"]


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Everything after the command line is read.

    Raises:
        ValueError: an argument or folder that cannot be used.
        common.RefusalError: the models disagree.
    """
    tokens, batches = parse_tokens(arguments.tokens), parse_batches(arguments.batch)
    device = common.find_device(arguments.device)
    if arguments.cuda_graph and device.type != "cuda":
        raise ValueError("--cuda-graph: expected a GPU, got a CPU")
    dtype_name = arguments.dtype or ("bf16" if device.type == "cuda" else "fp32")
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
    if arguments.cuda_graph:
        notes += add_graphs(zoo, tables, _START + arguments.seconds)
    for note in notes:
        console.print(f"[yellow]{note}; left out[/]")
    sweeps = [Sweep(tables[batch], batch, zoo) for batch in batches]
    measure(sweeps, _START + arguments.seconds, console)
    roofline = roofline.best(common.Roofline.measure(device, common.DTYPES[dtype_name]))
    extra = {"dtype": dtype_name, **roofline.columns(), **common.facts(device)}
    rows = make_rows(sweeps, tables, extra, roofline)
    print_table(rows, console)
    left_out = sum(len(group) for table in tables.values() for group in table) - len(rows)
    if left_out:
        console.print(f"[yellow]{left_out} rows are missing: {arguments.seconds:g} s were too short; use --seconds[/]")
    _write(rows, arguments, device, dtype_name, console)


def _write(
    rows: list[dict[str, Any]], arguments: argparse.Namespace, device: torch.device, dtype_name: str, console: Console
) -> None:
    folder = arguments.output or common.results_dir(device)
    name = f"latency_{dtype_name}"
    if DEFAULT_TOKENS not in arguments.tokens.split(","):
        name += "_" + re.sub(r"[^0-9]+", "-", arguments.tokens)
    common.write_csv(folder / f"{name}.csv", rows)
    plot_latency(rows, folder / f"{name}.png")
    console.print(f"wrote {folder / name}.csv and .png after {time.perf_counter() - _START:.0f} s")


def main() -> None:
    """Runs, and turns what is wrong into one line."""
    arguments = parse_arguments()
    console = common.make_console()
    with common.errors_in_one_line():
        run(arguments, console)


if __name__ == "__main__":
    main()
