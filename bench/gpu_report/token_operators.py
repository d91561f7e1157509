"""Times the operators other than attention against eager and compiled torch; a part of the GPU report.

python -m bench.gpu_report.token_operators --seconds 60
"""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from bench import graphs
from bench.failures import is_fatal, reason
from bench.gpu_report.attention import make_part_parser
from bench.gpu_report.token_cases import Call, Case, cases
from bench.machine import facts, find_device
from bench.roofline import Roofline
from bench.rows import write_rows
from bench.timing import median

COMPILE_SECONDS = 25.0


def run(device: torch.device, seconds: float, quick: bool, output: Path | None) -> tuple[list[dict[str, Any]], int]:
    """CSV rows of the cases measured before the time is over, and the number of our methods that are wrong."""
    deadline = time.perf_counter() + seconds
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ceilings = Roofline.measure(device, dtype, 0.1 if quick else 1.0)
    known = facts(device)
    rows: list[dict[str, Any]] = []
    failures = 0
    made = cases(device, quick)
    for index, make in enumerate(made):
        if index and time.perf_counter() > deadline - 1:
            print(f"left out: the time was over before the last {len(made) - index} cases")
            break
        case = make()
        calls, wrong = _ready(case, deadline)
        failures += wrong
        with torch.no_grad():
            share = min(1.5, 0.2 * seconds / len(made))
            times = graphs.time_methods(calls, device, 0.1 if quick else share)
        rows += _rows(case, times, ceilings, known)
        if output is not None:
            write_rows(output / "token_operators.csv", rows)
    return rows, failures


def _ready(case: Case, deadline: float) -> tuple[dict[str, list[Call]], int]:
    """The correct calls by name, and the number of our wrong methods; the wrong ones are printed."""
    calls: dict[str, list[Call]] = {}
    failures = 0
    for name, makers in case.methods.items():
        if name.endswith(" compiled") and time.perf_counter() > deadline - COMPILE_SECONDS:
            print(f"left out: {name}, {case.label}: no time to compile it")
            continue
        try:
            first = makers[0]()
            with torch.no_grad():
                case.check(name, first)
            calls[name] = [first, *(make() for make in makers[1:])]
            with torch.no_grad():
                for call in calls[name]:
                    call()
        except Exception as error:
            ours = not name.startswith("torch")
            failures += ours
            print(f"{'FAILED' if ours else 'left out:'} {name}, {case.label}: {reason(error)}", flush=True)
            calls.pop(name, None)
            if is_fatal(error):
                raise
    return calls, failures


def _rows(
    case: Case, times: dict[str, graphs.Times], ceilings: Roofline, known: dict[str, Any]
) -> list[dict[str, Any]]:
    middles = {name: median(each.best) for name, each in times.items()}
    others = [middle for name, middle in middles.items() if name.startswith("torch") or name == "reference"]
    best = min(others, default=None)
    floor_us = ceilings.floor_us(case.bytes, case.flop)
    rows = []
    for name, each in times.items():
        row = {"bench": "gpu_token_operators", **case.fields, "method": name, **graphs.columns(each)}
        row |= {"graph_error": each.graph_error, "floor_us": floor_us}
        row["share_of_floor"] = floor_us / 1e6 / middles[name]
        row |= {"gb_s": case.bytes / middles[name] / 1e9, "tflop_s": case.flop / middles[name] / 1e12}
        row["times_best_torch"] = best / middles[name] if best else None
        reference = middles.get("reference")
        row["times_reference"] = reference / middles[name] if reference else None
        rows.append(row | ceilings.columns() | known)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row as a line of text."""
    name = " ".join(str(row[key]) for key in ("operator", "images", "direction") if row[key])
    times = row.get("graph_p50_us") or row["eager_p50_us"]
    ratio = f" {row['times_best_torch']:5.2f}x best torch" if row["times_best_torch"] else ""
    return f"{name:<34} {row['method']:<22} {times:9.1f} us {row['gb_s']:7.0f} GB/s{ratio}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the part; returns 1 if a backend of ours is wrong."""
    arguments = make_part_parser(__doc__).parse_args(argv)
    device = find_device(arguments.device)
    with torch.cuda.stream(torch.cuda.Stream()) if device.type == "cuda" else nullcontext():
        rows, failures = run(device, arguments.seconds, arguments.quick, arguments.output)
    for row in rows:
        print(line(row))
    return 1 if failures or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
