"""Times `varlen_attention` of every backend and of the peers, forward and backward; a part of the GPU report.

    python -m bench.gpu_report.attention --seconds 150

Every method is checked against fp64 before it is timed: ours within the project's tolerance, peers within a relative
error of 0.02. Rows are written after every workload, so a run that is stopped leaves the rows measured so far.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from bench import graphs
from bench.attention.workloads import Buffers, Workload, cpu_workloads, gpu_workloads, rotations
from bench.command_line import add_device, add_output, make_parser, split_names
from bench.failures import is_fatal, reason
from bench.gpu_report import commands
from bench.gpu_report.attention_rows import Row, finished, line, make_row
from bench.gpu_report.preparation import Preparation
from bench.machine import facts, find_device
from bench.roofline import Roofline
from bench.rows import write_rows
from bench.timing import host_seconds

HOST_WORKLOAD = "1 x 196"  # the host's cost is measured on it


class Part:
    """Measures workload after workload until the time is over.

    Args:
        workloads: workloads in the order of their importance.
        preparation: preparation of the methods; has the time limit, notes and failures.
        seconds: time limit of the part.
        quick: whether few samples are enough.
        output: folder of attention.csv; if None, nothing is written.

    Attributes:
        rows: CSV rows, unfinished.
    """

    def __init__(
        self, workloads: Sequence[Workload], preparation: Preparation, seconds: float, quick: bool, output: Path | None
    ) -> None:
        self.workloads, self.preparation, self.quick, self.output = workloads, preparation, quick, output
        self.device, self.dtype, self.seconds = preparation.device, preparation.dtype, seconds
        # Time for the samples of each workload and direction, after preparation and checks.
        self.sample_seconds = 0.1 if quick else min(2.0, max(0.3, 0.3 * seconds / len(workloads) / 2))
        self.rows: list[Row] = []
        self.ceilings = self._measured_ceilings()
        self.facts = facts(self.device)

    def run(self) -> None:
        """Measures, prints and writes."""
        longest = 0.0
        for index, workload in enumerate(self.workloads):
            if self.preparation.left < max(longest, 2.0) and index:
                rest = ", ".join(each.label for each in self.workloads[index:])
                self.preparation.note(f"the time was over before: {rest}")
                break
            start = time.perf_counter()
            # Compiling takes the time of several workloads.
            with_compiled = index == 0 or (index < 3 and self.preparation.left > 0.6 * self.seconds)
            known = len(self.rows)
            self.measure(workload, with_compiled)
            longest = 0.0 if with_compiled else max(longest, time.perf_counter() - start)
            self.write()
            for row in finished(self.rows[known:], self.ceilings, self.facts):
                print(line(row), flush=True)
        self.ceilings = self.ceilings.best(self._measured_ceilings())
        self.write()

    def measure(self, workload: Workload, with_compiled: bool) -> None:
        """Adds the rows of all methods on one workload, in both directions."""
        moved = workload.bytes(False, self.dtype.itemsize)
        sets = 2 if self.quick else rotations(moved, graphs.cache_bytes(self.device))
        buffers = [Buffers(workload, self.dtype, self.device, seed) for seed in range(sets)]
        ready = self.preparation.ready(buffers, with_compiled)
        for backward in (False, True):
            calls = {name: [p.backward if backward else p.forward for p in each] for name, each in ready.items()}
            with torch.no_grad():
                calls = {name: each for name, each in calls.items() if self._runs(name, each, workload)}
                times = graphs.time_methods(calls, self.device, self.sample_seconds)
                hosts = self._host_us(calls) if workload.name == HOST_WORKLOAD and not backward else {}
            for name, each in times.items():
                if each.graph_error:
                    self.preparation.note(f"{name}, {workload.label}: no CUDA graph: {each.graph_error}")
                row = make_row(workload, backward, name, each, self.dtype, sets)
                row["note"] = "; ".join(filter(None, (row["note"], ready[name][0].note)))
                self.rows.append(row | {"host_us": hosts.get(name)})

    def write(self) -> None:
        """Writes the rows so far, with the ceilings measured so far."""
        if self.output is not None and self.rows:
            write_rows(self.output / "attention.csv", finished(self.rows, self.ceilings, self.facts))

    def _measured_ceilings(self) -> Roofline:
        return Roofline.measure(self.device, self.dtype, 0.1 if self.quick else 1.0)

    def _runs(self, name: str, calls: Sequence[Callable[[], Any]], workload: Workload) -> bool:
        """Whether a method runs on every set of buffers; the calls also warm it up."""
        try:
            for call in calls:
                call()
        except Exception as error:
            self.preparation.note(f"{name}, {workload.label}: {reason(error)}")
            if is_fatal(error):
                raise
            return False
        return True

    def _host_us(self, calls: dict[str, list[Callable[[], Any]]]) -> dict[str, float]:
        single = {name: each[0] for name, each in calls.items()}
        return {name: seconds * 1e6 for name, seconds in host_seconds(single, self.sample_seconds).items()}


def choose_workloads(labels: Sequence[str], small: bool) -> list[Workload]:
    """The workloads of the labels, such as "512 x 49" or "512 x 49, head_dim 32"; all if there are none."""
    known = cpu_workloads() if small else gpu_workloads()
    if not labels:
        return known
    by_label = {each.label: each for each in known}
    return [by_label[label if "," in label else f"{label}, head_dim 64"] for label in labels]


def make_part_parser(documentation: str | None) -> argparse.ArgumentParser:
    """The parser of a measuring part of the report."""
    parser = make_parser(documentation)
    parser.add_argument("--seconds", type=float, default=150, help="time limit of the part (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small shapes: a smoke test")
    add_device(parser)
    add_output(parser, "CSV file", "none is written")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the part; returns 1 if a backend of ours is wrong, `commands.LOST_DEVICE` if the device was lost."""
    parser = make_part_parser(__doc__)
    parser.add_argument("--without", default="", help="backends and peers to leave out, separated by commas")
    parser.add_argument("--methods", default="", help="backends and peers to measure, separated by commas")
    parser.add_argument(
        "--workloads", default="", help="workloads to measure, separated by semicolons, such as '512 x 49'"
    )
    arguments = parser.parse_args(argv)
    device, quick = find_device(arguments.device), arguments.quick
    deadline = time.perf_counter() + arguments.seconds
    workloads = choose_workloads(split_names(arguments.workloads, ";"), quick or device.type == "cpu")
    without, methods = (split_names(each) for each in (arguments.without, arguments.methods))
    # Graphs are captured and backward passes run on the stream of the forward pass, which must not be the default one.
    with torch.cuda.stream(torch.cuda.Stream()) if device.type == "cuda" else nullcontext():
        preparation = Preparation(device, deadline, without, methods)
        part = Part(workloads, preparation, arguments.seconds, quick, arguments.output)
        try:
            part.run()
        except Exception as error:
            if not is_fatal(error):
                raise
            print(f"FAILED {reason(error)}", flush=True)
            return commands.LOST_DEVICE
    for failure in preparation.failures:
        print(f"FAILED {failure}")
    return 1 if preparation.failures or not part.rows else 0


if __name__ == "__main__":
    sys.exit(main())
