"""The paths that only a GPU takes, with stand-ins for its graphs and its errors."""

import contextlib
import functools
import sys
import time
import types
from typing import ClassVar

import common
import gpu_report
import pytest
import torch
import vit_graphs
import vit_methods
from gpu import attention, commands, peers, timing
from gpu.workloads import Buffers, Workload
from torch.nn.attention import SDPBackend

from tests.bench.gpu_helpers import CPU, NATIVE, read


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
    monkeypatch.setattr(torch, "compile", lambda function, dynamic, fullgraph: function)
    monkeypatch.setattr(vit_methods, "_TIMM_NAME", "vit_tiny_patch16_224")
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    images = functools.partial(vit_methods.resized, pixels)
    zoo = vit_methods.Zoo(images, CPU, torch.float32, vit_methods.Stopwatch(CPU))
    with torch.inference_mode():
        rows, _ = vit_methods.methods_for(zoo, [64], 1)
    steps = []
    add = functools.partial(vit_graphs.add_forms, zoo)
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
        return commands.Result(commands.LOST_DEVICE if lost else 0, output, 1.0)

    monkeypatch.setattr(gpu_report.Report, "script", script)
    assert gpu_report.main(["--parts", "attention", "--device", "cpu", "--output", str(tmp_path)]) == 1
    assert calls[1][-2:] == ("--without", "cuda")
    assert len(calls) == 2
    assert commands.Result(1, "preparing: cuda\nTimeout (0:01:30)!", 1).lost_by == "cuda"
    assert commands.Result(1, "preparing: cuda\nFAILED out", 1).lost_by is None


@pytest.mark.skipif(not NATIVE, reason="the compiled extension is missing")
def test_a_backend_can_be_left_out(tmp_path, capsys):
    arguments = ["--quick", "--device", "cpu", "--seconds", "0", "--output", str(tmp_path), "--without", "cpu"]
    assert attention.main(arguments) == 0
    assert not any(row["method"].startswith("cpu") for row in read(tmp_path / "attention.csv"))


# ---- peers


class StandInAttention(torch.autograd.Function):
    """A sum instead of attention. Notes whether it would take cuDNN, forward and backward."""

    @staticmethod
    def forward(ctx, q, k, v, takes_cudnn, remembers, taken):
        ctx.takes_cudnn, ctx.remembered, ctx.taken = takes_cudnn, takes_cudnn() if remembers else None, taken
        taken.append(takes_cudnn())
        return q + k + v

    @staticmethod
    def backward(ctx, dout):
        ctx.taken.append(ctx.takes_cudnn() if ctx.remembered is None else ctx.remembered)
        return dout, dout, dout, None, None, None


def stand_in_varlen(generation, cudnn):
    """torch.nn.attention.varlen of three generations, and a list of what it takes: True for cuDNN."""
    varlen, taken = types.ModuleType("varlen"), []
    varlen._should_use_cudnn = lambda index: cudnn and generation != "2.11"
    takes_cudnn = lambda: varlen._should_use_cudnn(0)  # noqa: E731
    if generation == "2.14":
        varlen._can_use_cudnn = lambda q, k, v, longest, window: cudnn
        takes_cudnn = lambda: varlen._can_use_cudnn(None, None, None, 0, [-1, -1])  # noqa: E731
    if generation == "later":
        backends = (SDPBackend.FLASH_ATTENTION.value, SDPBackend.CUDNN_ATTENTION.value)
        varlen._select_backend = lambda *_: backends[cudnn and torch.backends.cuda.cudnn_sdp_enabled()]
        takes_cudnn = lambda: varlen._select_backend() == backends[1]  # noqa: E731
    remembers = generation == "later"
    varlen.varlen_attn = lambda q, k, v, *_: StandInAttention.apply(q, k, v, takes_cudnn, remembers, taken)
    return varlen, taken


def prepared_varlen(name, buffers):
    return next(peer for peer in peers.PEERS if peer.name == name).prepare(buffers)


@pytest.fixture
def small():
    return Buffers(Workload("2 x 3", (3, 3), 8, 16), torch.float32, CPU)


@pytest.mark.parametrize("generation", ["2.11", "2.14", "later"])
@pytest.mark.parametrize("cudnn", [False, True], ids=["no-cudnn", "cudnn"])
def test_varlen_attn_is_measured_with_both_backends(monkeypatch, small, generation, cudnn):
    varlen, taken = stand_in_varlen(generation, cudnn)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", varlen)
    before = dict(vars(varlen))
    by_default = cudnn and generation != "2.11"
    for name, wanted in zip(peers.VARLEN_ATTN, (False, True), strict=True):
        if wanted and not by_default:
            with pytest.raises(peers.UnavailableError, match="186142" if generation == "2.11" else "takes flash"):
                prepared_varlen(name, small)
            continue
        prepared = prepared_varlen(name, small)
        taken.clear()
        assert torch.equal(prepared.forward(), small.q + small.k + small.v)
        assert all(torch.equal(gradient, small.dout) for gradient in prepared.backward())
        assert taken == [wanted] * 3  # the graph of the backward pass has a forward pass of its own
        assert prepared.note == f"varlen_attn by itself takes {'cuDNN' if by_default else 'flash'}"
    assert vars(varlen) == before


def test_the_better_varlen_attn_is_what_rows_are_compared_with():
    def row(method, microseconds, ours=False):
        return {
            "workload": "w", "head_dim": 64, "direction": "fwd", "method": method, "ours": ours, "exact": True,
            "graph_p50_us": microseconds, "eager_p50_us": microseconds, "least_bytes": 1e6, "flop": 1e9,
            "gb_s": 1.0, "tflop_s": 1.0,
        }  # fmt: skip

    rows = [row("cuda", 10.0, ours=True), row("varlen_attn flash", 30.0), row("varlen_attn cudnn", 20.0)]
    ceilings = common.Roofline.measure(CPU, torch.float32, 0.01)
    first, *_ = attention.finished(rows, ceilings, {})
    assert first["graph_times_varlen_attn"] == 2
    assert first["graph_best_peer"] == "varlen_attn cudnn"


def test_peers_that_compile_come_last():
    compiled = [peer.compiled for peer in peers.PEERS]
    assert compiled == sorted(compiled)
    assert peers.PEERS[-1].name == "flex_attention"
    assert {peer.name for peer in peers.PEERS} >= set(peers.VARLEN_ATTN)


@pytest.mark.parametrize("lengths", [(64, 100, 196), (1024, 1024)], ids=["ragged", "equal"])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_graphs_of_cudnn_are_valid(monkeypatch, lengths, head_dim):
    cudnn = pytest.importorskip("cudnn")
    from gpu import cudnn_thd

    def graph(handle, graph=cudnn.pygraph, **types):
        return graph(sm_version=90, **types)

    def build(graph):
        graph.validate()
        graph.build_operation_graph()

    # Plans need a device; what the frontend and the library check before them does not.
    monkeypatch.setattr(cudnn, "pygraph", graph)
    monkeypatch.setattr(cudnn_thd, "_handle", lambda: None)
    monkeypatch.setattr(cudnn_thd, "_build", build)
    monkeypatch.setattr(cudnn_thd, "_workspace", lambda graphs, device: None)
    buffers = Buffers(Workload("w", lengths, head_dim), torch.bfloat16, CPU)
    plans = cudnn_thd.Plans(buffers)
    assert len({id_.get_uid() for id_ in plans.forward_ids.values()}) == len(plans.forward_ids)
    assert len({id_.get_uid() for id_ in plans.backward_ids.values()}) == len(plans.backward_ids)
