"""Times of calls over rotated buffers, launched one by one and replayed as a CUDA graph.

A method is a list of calls, one for each set of buffers, so that no call finds its inputs in the cache. A sample is the
time of a pass over the list, divided by its length. Methods take turns, as in every bench.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from bench.failures import is_fatal, reason
from bench.timing import interleave, quantiles

Calls = Sequence[Callable[[], Any]]


@dataclass
class Times:
    """Samples of one method.

    Attributes:
        eager: seconds of one call launched by the host.
        graph: seconds of one call in a replayed CUDA graph; empty if there is none.
        graph_error: the reason why there is no graph.
    """

    eager: list[float] = field(default_factory=list)
    graph: list[float] = field(default_factory=list)
    graph_error: str = ""

    @property
    def best(self) -> list[float]:
        """Samples of the graph, which have the least host time, or the eager samples if there is no graph."""
        return self.graph or self.eager


def capture(calls: Calls, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    """Captures all calls in a row on the current stream, which must not be the default one.

    The calls must have run before: compiling, planning and first allocations fail during a capture. Graphs that share a
    `pool` may use the memory of each other's results once those are dropped.

    Returns:
        The graph, and the results of the calls.

    Raises:
        RuntimeError: a call cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    collecting = gc.isenabled()
    gc.disable()  # otherwise memory of another graph may be freed while this one is captured
    try:
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            # Results are kept until the end, so that every call writes to memory of its own.
            results = [call() for call in calls]
        except BaseException:
            with suppress(RuntimeError):  # the end fails too, and says less
                graph.capture_end()
            raise
        graph.capture_end()
    finally:
        if collecting:
            gc.enable()
    return graph, results


def cache_bytes(device: torch.device) -> int:
    """Bytes of the last cache before the memory; a guess on a CPU, whose buffers need not rotate far."""
    if device.type == "cpu":
        return 2**20
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def time_methods(methods: Mapping[str, Calls], device: torch.device, seconds: float) -> dict[str, Times]:
    """Eager times of all methods in turn, then, on a GPU, graph times of those that can be captured.

    Args:
        methods: lists of calls by name; each call has run before.
        device: device of the calls; on a GPU the current stream must not be the default one.
        seconds: limit for all methods together; on a GPU the graphs have half of it.
    """
    times = {name: Times() for name in methods}
    passes = {name: partial(_pass, calls) for name, calls in methods.items()}
    part = seconds / 2 if device.type == "cuda" else seconds
    for name, samples in interleave(passes, device, part).items():
        times[name].eager = [sample / len(methods[name]) for sample in samples]
    if device.type == "cuda":
        _time_graphs(methods, times, device, part)
        torch.cuda.empty_cache()  # the graphs' memory, which was reserved for them
    return times


def _time_graphs(
    methods: Mapping[str, Calls], times: Mapping[str, Times], device: torch.device, seconds: float
) -> None:
    graphs = {}
    for name, calls in methods.items():
        try:
            graphs[name], _ = capture(calls)
        except Exception as error:  # perhaps of a library; the other methods are still timed
            if is_fatal(error):
                raise
            times[name].graph_error = reason(error)
            torch.cuda.synchronize()
    replays = {name: graph.replay for name, graph in graphs.items()}
    for name, samples in interleave(replays, device, seconds).items() if replays else ():
        times[name].graph = [sample / len(methods[name]) for sample in samples]


def _pass(calls: Calls) -> None:
    for call in calls:
        call()


def columns(times: Times) -> dict[str, float | int | str]:
    """Columns of a CSV row: quantiles in microseconds and numbers of samples."""
    row: dict[str, float | int | str] = {}
    for kind, samples in (("graph", times.graph), ("eager", times.eager)):
        row[f"{kind}_samples"] = len(samples)
        if samples:
            row |= {f"{kind}_{name}_us": value * 1e6 for name, value in quantiles(samples).items()}
    return row
