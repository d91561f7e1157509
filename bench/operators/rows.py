"""CSV rows of the operator benches, and their table."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.roofline import Roofline
from bench.timing import quantiles


@dataclass(frozen=True)
class Measured:
    """A case without its tensors, and its times.

    Attributes:
        fields: columns that identify the case.
        flop: operations, 0 if they are not meaningful.
        bytes: bytes moved, 0 if they are not meaningful.
        samples: seconds of a call by method.
    """

    fields: dict[str, Any]
    flop: float
    bytes: float
    samples: dict[str, list[float]]

    @property
    def dtype(self) -> str:
        return str(self.fields["dtype"])


def make_rows(operator: str, case: Measured, roofline: Roofline) -> list[dict[str, Any]]:
    """A CSV row for each method of a case, without the facts about the machine."""
    times = {name: quantiles(values) for name, values in case.samples.items()}
    torch_times = [time["p50"] for name, time in times.items() if name.startswith("torch")]
    best_torch = min(torch_times, default=None)
    rows = []
    for name, time in times.items():
        p50 = time["p50"]
        row = {"bench": operator, **case.fields, "method": name, "samples": len(case.samples[name])}
        row |= {f"{quantile}_us": value * 1e6 for quantile, value in time.items()}
        row["times_best_torch"] = best_torch / p50 if best_torch else None
        row["times_reference"] = times["reference"]["p50"] / p50 if "reference" in times else None
        row["gflop_s"] = case.flop / p50 / 1e9 if case.flop else None
        row["share_of_peak"] = case.flop / p50 / 1e9 / roofline.peak_gflop_s if case.flop else None
        row["gb_s"] = case.bytes / p50 / 1e9 if case.bytes else None
        row["share_of_copy"] = case.bytes / p50 / 1e9 / roofline.copy_gb_s if case.bytes else None
        rows.append(row | roofline.columns())
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


def print_table(operator: str, rows: list[dict[str, Any]], console: Console) -> None:
    """Prints the rows, one section for each case, and the rooflines."""
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
