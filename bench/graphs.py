"""Times of calls over rotated buffers, launched one by one and replayed as a CUDA graph.

A method is a list of calls, one for each set of buffers, so that a call finds nothing of its inputs in the cache. One
sample is a pass over the whole list divided by its length. Methods take turns, as in every bench here.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import common
import torch

Calls = Sequence[Callable[[], Any]]


@dataclass
class Times:
    """Seconds of one call: `eager` launched by the host, `graph` replayed; empty where not measured.

    `graph_error` says why there is no graph.
    """

    eager: list[float] = field(default_factory=list)
    graph: list[float] = field(default_factory=list)
    graph_error: str = ""

    @property
    def best(self) -> list[float]:
        """Of the graph where there is one: it has least of the host in it."""
        return self.graph or self.eager


def capture(calls: Calls, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    """A graph of all calls in a row, on the current stream, which must not be the default one, and their results.

    The calls must have run before: what they compile, plan or allocate once is not allowed while capturing. Graphs
    that share a `pool` may use the memory of each other's results once those are dropped.

    Raises:
        RuntimeError: what a call does cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    collecting = gc.isenabled()
    gc.disable()  # or memory of another graph may be freed while this one is captured
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
    """Size of the last cache before the memory; a guess on a CPU, where buffers need not rotate far."""
    if device.type == "cpu":
        return 2**20
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def time_methods(methods: Mapping[str, Calls], device: torch.device, seconds: float) -> dict[str, Times]:
    """Eager times of all methods in turn, then, on a GPU, graph times of those that can be captured.

    Args:
        methods: by name, calls that have run before.
        device: where they run; on a GPU the current stream must not be the default one.
        seconds: for all methods, half of it for the graphs.
    """
    times = {name: Times() for name in methods}
    passes = {name: partial(_pass, calls) for name, calls in methods.items()}
    part = seconds / 2 if device.type == "cuda" else seconds
    for name, samples in common.interleave(passes, device, part).items():
        times[name].eager = [sample / len(methods[name]) for sample in samples]
    if device.type == "cuda":
        _time_graphs(methods, times, device, part)
        torch.cuda.empty_cache()  # of the graphs, whose memory nobody else could use before
    return times


def _time_graphs(
    methods: Mapping[str, Calls], times: Mapping[str, Times], device: torch.device, seconds: float
) -> None:
    graphs = {}
    for name, calls in methods.items():
        try:
            graphs[name], _ = capture(calls)
        except Exception as error:  # whatever a library raises there is a fact about it, not about us
            if is_fatal(error):
                raise
            times[name].graph_error = reason(error)
            torch.cuda.synchronize()
    replays = {name: graph.replay for name, graph in graphs.items()}
    for name, samples in common.interleave(replays, device, seconds).items() if replays else ():
        times[name].graph = [sample / len(methods[name]) for sample in samples]


def _pass(calls: Calls) -> None:
    for call in calls:
        call()


def reason(error: BaseException) -> str:
    """First line of an error, short enough for a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": ")


def is_fatal(error: BaseException) -> bool:
    """True where the device is lost for this process: every later call would fail as well."""
    text = str(error).lower()
    return any(words in text for words in ("illegal memory access", "illegal instruction", "misaligned address",
                                           "unspecified launch failure", "device-side assert triggered"))  # fmt: skip


def columns(times: Times) -> dict[str, float | int | str]:
    """For a CSV row: quantiles in microseconds and numbers of samples."""
    row: dict[str, float | int | str] = {}
    for kind, samples in (("graph", times.graph), ("eager", times.eager)):
        row[f"{kind}_samples"] = len(samples)
        if samples:
            row |= {f"{kind}_{name}_us": value * 1e6 for name, value in common.quantiles(samples).items()}
    return row
