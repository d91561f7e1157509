"""The code that only runs on a GPU, with stand-ins for its graphs and its errors."""

import contextlib
import functools
import time
from typing import ClassVar

import pytest
import torch

from bench import graphs, timing
from bench.gpu_report import __main__ as gpu_report
from bench.gpu_report import commands
from bench.gpu_report.report import Report
from bench.vit import forms, images, stopwatch, zoo
from tests.bench.helpers import CPU


class StandInGraph:
    """Replays by calling again, and writes results into the memory of the captured results, as a graph does."""

    def __init__(self, calls):
        self.calls, self.results = calls, [call() for call in calls]

    def replay(self):
        for call, result in zip(self.calls, self.results, strict=True):
            again = call()
            if isinstance(result, torch.Tensor):
                result.copy_(again)


@pytest.fixture
def stand_ins(monkeypatch):
    """Replaces the parts of torch.cuda that timing and capturing need."""
    stream = type("Stream", (), {"wait_stream": lambda self, other: None})

    class Event:
        def __init__(self, enable_timing=False):
            self.moment = 0.0

        def record(self):
            self.moment = time.perf_counter()

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return (end.moment - self.moment) * 1e3

    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)


def stand_in_capture(calls, pool=None):
    graph = StandInGraph(calls)
    return graph, graph.results


def test_graphs_are_timed_beside_eager_calls(monkeypatch, stand_ins):
    def capture(calls):
        if len(calls) == 1:
            raise RuntimeError("it waits for the device")
        return stand_in_capture(calls)

    monkeypatch.setattr(graphs, "capture", capture)
    methods = {"two": [lambda: time.sleep(0.002)] * 2, "one": [lambda: None]}
    times = graphs.time_methods(methods, torch.device("cuda"), seconds=0)
    assert times["one"].graph_error == "RuntimeError: it waits for the device"
    assert not times["one"].graph
    # Of two calls in a pass, the time of one.
    assert 0.002 <= timing.quantiles(times["two"].graph)["p50"] < 0.004
    assert times["two"].best is times["two"].graph
    assert graphs.columns(times["two"])["graph_p50_us"] > 2000


class FailingGraph:
    log: ClassVar[list[str]] = []

    def capture_begin(self, pool, capture_error_mode):
        self.log.append("begin")

    def capture_end(self):
        self.log.append("end")
        if "failed" in self.log:
            raise RuntimeError("operation failed due to a previous error during capture")


def test_a_failed_capture_ends_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FailingGraph)

    def call():
        FailingGraph.log.append("failed")
        raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"):
        graphs.capture([call])
    assert FailingGraph.log == ["begin", "failed", "end"]
    FailingGraph.log.clear()
    assert graphs.capture([lambda: 3, lambda: 4])[1] == [3, 4]
    assert FailingGraph.log == ["begin", "end"]


def test_models_are_captured_and_compiled(monkeypatch, stand_ins):
    monkeypatch.setattr(graphs, "capture", stand_in_capture)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, fullgraph: function)
    monkeypatch.setattr(zoo, "_TIMM_NAME", "vit_tiny_patch16_224")
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    built = zoo.Zoo(functools.partial(images.resized, pixels), CPU, torch.float32, stopwatch.Stopwatch(CPU))
    with torch.inference_mode():
        rows, _ = zoo.methods_for(built, [64], 1)
    steps = []
    add = functools.partial(forms.add_forms, built)
    added = lambda batch, methods: steps.append([method.name for method in methods])  # noqa: E731
    assert add({1: rows}, time.perf_counter() + 1000, added) == []
    names = [[method.name for method in each] for each in rows]
    assert names == [
        ["dense", "masked", "trimmed", "packed", "dense graph", "packed graph", "packed compiled",
         "packed compiled graph"],
        ["dense", "dense graph", "dense compiled", "dense compiled graph"],
    ]  # fmt: skip
    assert steps == [
        ["dense graph", "packed graph"],
        ["dense graph"],
        ["dense compiled", "dense compiled graph"],
        ["packed compiled", "packed compiled graph"],
    ]
    # Nothing compiles once the time is over.
    again = [[method for method in each if method.name == "dense"] for each in rows]
    (note,) = add({1: again}, time.perf_counter() - 1000)
    assert note == "dense compiled at 196 tokens and batch 1: no time to compile it"
    assert add({1: again}, 0, forms=["dense graph"]) == []
    packed = rows[0][5]
    blocks, whole = built.stopwatch.time(packed.call, pixels)
    assert blocks is not None  # the stand-in runs the hooks
    assert 0 < blocks < whole


def test_a_graph_that_differs_is_refused(monkeypatch, stand_ins):
    def capture(calls, pool):
        graph, results = stand_in_capture(calls)
        graph.calls = [lambda: calls[0]() * 1.1]
        return graph, results

    monkeypatch.setattr(graphs, "capture", capture)
    built = type("Zoo", (), {"stopwatch": stopwatch.Stopwatch(CPU)})()
    with pytest.raises(AssertionError, match="logits of the graph"):
        forms.graphed(lambda images: images.float(), torch.rand(2, 3) + 1, built, None, torch.cuda.Stream())
    assert not built.stopwatch.paused


def test_what_lost_the_device_is_left_out_afterwards(monkeypatch, tmp_path):
    calls = []

    def module(self, part, limit, name, *arguments):
        calls.append(arguments)
        lost = "--without" not in arguments
        output = "preparing: triton\npreparing: cuda\nFAILED illegal memory access"
        return commands.Result(commands.LOST_DEVICE if lost else 0, output, 1.0)

    monkeypatch.setattr(Report, "module", module)
    assert gpu_report.main(["--parts", "attention", "--device", "cpu", "--output", str(tmp_path)]) == 1
    assert calls[1][-2:] == ("--without", "cuda")
    assert len(calls) == 2
    assert commands.Result(1, "preparing: cuda\nTimeout (0:01:30)!", 1).lost_by == "cuda"
    assert commands.Result(1, "preparing: cuda\nFAILED out", 1).lost_by is None
