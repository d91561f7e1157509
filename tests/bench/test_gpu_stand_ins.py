"""The paths that only a GPU takes, with stand-ins for its graphs and its errors."""

import contextlib
import functools
import time
from typing import ClassVar

import common
import gpu_report
import pytest
import torch
import vit_graphs
import vit_methods
from gpu import attention, commands, timing
from gpu_helpers import CPU, NATIVE, read


class StandInGraph:
    """Replays by calling again, and leaves results where those of the capture were, as a graph does."""

    def __init__(self, calls):
        self.calls, self.results = calls, [call() for call in calls]

    def replay(self):
        for call, result in zip(self.calls, self.results, strict=True):
            again = call()
            if isinstance(result, torch.Tensor):
                result.copy_(again)


@pytest.fixture
def stand_ins(monkeypatch):
    """Of torch.cuda, what timing and capturing need."""
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

    monkeypatch.setattr(timing, "capture", capture)
    methods = {"two": [lambda: time.sleep(0.002)] * 2, "one": [lambda: None]}
    times = timing.time_methods(methods, torch.device("cuda"), seconds=0)
    assert times["one"].graph_error == "RuntimeError: it waits for the device"
    assert not times["one"].graph
    # Of two calls in a pass, the time of one.
    assert 0.002 <= common.quantiles(times["two"].graph)["p50"] < 0.004
    assert times["two"].best is times["two"].graph
    assert timing.columns(times["two"])["graph_p50_us"] > 2000


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
        timing.capture([call])
    assert FailingGraph.log == ["begin", "failed", "end"]
    FailingGraph.log.clear()
    assert timing.capture([lambda: 3, lambda: 4])[1] == [3, 4]
    assert FailingGraph.log == ["begin", "end"]


def test_models_are_captured_and_compiled(monkeypatch, stand_ins):
    monkeypatch.setattr(timing, "capture", stand_in_capture)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(vit_methods, "_TIMM_NAME", "vit_tiny_patch16_224")
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    images = functools.partial(vit_methods.resized, pixels)
    zoo = vit_methods.Zoo(images, CPU, torch.float32, vit_methods.Stopwatch(CPU))
    with torch.inference_mode():
        rows, _ = vit_methods.methods_for(zoo, [64], 1)
    assert vit_graphs.add_graphs(zoo, {1: rows}, time.perf_counter() + 1000) == []
    names = [[method.name for method in each] for each in rows]
    assert names == [
        ["dense", "masked", "trimmed", "packed", "dense graph", "packed graph"],
        ["dense", "dense compiled", "dense graph", "dense compiled graph"],
    ]
    # Nothing compiles once the time is over.
    again = [[method for method in each if method.name == "dense"] for each in rows]
    (note,) = vit_graphs.add_graphs(zoo, {1: again}, time.perf_counter() - 1000)
    assert note == "dense compiled at 196 tokens and batch 1: no time to compile it"
    packed = rows[0][5]
    blocks, whole = zoo.stopwatch.time(packed.call, pixels)
    assert blocks is not None  # the stand-in runs the hooks
    assert 0 < blocks < whole


def test_a_graph_that_differs_is_refused(monkeypatch, stand_ins):
    def capture(calls, pool):
        graph, results = stand_in_capture(calls)
        graph.calls = [lambda: calls[0]() * 1.1]
        return graph, results

    monkeypatch.setattr(timing, "capture", capture)
    zoo = type("Zoo", (), {"stopwatch": vit_methods.Stopwatch(CPU)})()
    with pytest.raises(AssertionError, match="logits of the graph"):
        vit_graphs.graphed(lambda images: images.float(), torch.rand(2, 3) + 1, zoo, None, torch.cuda.Stream())
    assert not zoo.stopwatch.paused


def test_what_lost_the_device_is_left_out_afterwards(monkeypatch, tmp_path):
    calls = []

    def script(self, part, limit, name, *arguments):
        calls.append(arguments)
        lost = "--without" not in arguments
        output = "preparing: triton\npreparing: cuda\nFAILED illegal memory access"
        return commands.Result(attention.LOST_DEVICE if lost else 0, output, 1.0)

    monkeypatch.setattr(gpu_report.Report, "script", script)
    assert gpu_report.main(["--parts", "attention", "--device", "cpu", "--output", str(tmp_path)]) == 1
    assert calls[1][-2:] == ("--without", "cuda")
    assert len(calls) == 2
    assert gpu_report.lost_by(commands.Result(1, "preparing: cuda\nTimeout (0:01:30)!", 1)) == "cuda"
    assert gpu_report.lost_by(commands.Result(1, "preparing: cuda\nFAILED out", 1)) is None


@pytest.mark.skipif(not NATIVE, reason="the compiled extension is missing")
def test_a_backend_can_be_left_out(tmp_path, capsys):
    arguments = ["--quick", "--device", "cpu", "--seconds", "0", "--output", str(tmp_path), "--without", "cpu"]
    assert attention.main(arguments) == 0
    assert not any(row["method"].startswith("cpu") for row in read(tmp_path / "attention.csv"))
