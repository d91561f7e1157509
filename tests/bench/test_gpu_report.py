"""bench/gpu_report.py without a GPU: its formulas, its peers against fp64, its parsers, its parts and its exit code."""

import contextlib
import csv
import functools
import os
import sys
import time
from typing import ClassVar

import common
import gpu_report
import latency
import pytest
import readme_gpu
import torch
import vit_graphs
import vit_methods
from gpu import attention, checks, commands, ncu, peers, small_shapes, summary, targets, timing, token_operators
from gpu.workloads import HEADLINE, Buffers, Workload, gpu_workloads, rotations, uniform

from msvit_kernels import dispatch, testing

CPU = torch.device("cpu")
NATIVE = "cpu" in testing.backends_for("varlen_attention", "cpu", torch.float32, head_dim=64)
SMALL = Workload("3 x 5..12", (12, 5, 12), 16, 32)
EVEN = Workload("2 x 9", (9, 9), 16, 32)
PEERS = {peer.name: peer for peer in peers.PEERS}


# ---- workloads


def test_lengths_that_are_measured():
    by_name = {(each.name, each.head_dim): each for each in gpu_workloads()}
    assert {head_dim for _, head_dim in by_name} == {32, 64, 128}
    assert all(each.num_heads * each.head_dim == 384 for each in by_name.values())
    headline = by_name[HEADLINE, 64]
    assert gpu_workloads()[0] is not headline
    assert gpu_workloads()[0] == headline
    assert (len(headline.lengths), min(headline.lengths), headline.longest) == (256, 64, 196)
    assert 31_000 < headline.total < 36_000
    assert by_name["1 x 2048 and 255 x 64..196", 64].lengths[0] == 2048


def test_operations_and_bytes():
    work = Workload("x", (2, 3), 16, 32)
    assert work.flop(backward=False) == 4 * (4 + 9) * 2 * 16
    assert work.flop(backward=True) == 2.5 * work.flop(backward=False)
    assert work.bytes(False, 2) == 5 * 32 * 2 * 4 + 2 * 5 * 4
    assert work.bytes(True, 2) == 5 * 32 * 2 * 8 + 2 * 5 * 4
    assert work.bytes(True, 2, weighted=True) == work.bytes(True, 2) + 2 * 5 * 4


def test_floor_of_the_headline_is_the_memory():
    work = Workload(HEADLINE, (130,) * 256)
    assert work.floor_us(False, 4300, 790) == pytest.approx(24, rel=0.02)
    assert work.floor_us(True, 4300, 790) == pytest.approx(48, rel=0.02)
    # Long sequences are bound by arithmetic.
    assert Workload("x", (1024,) * 32).floor_us(False, 4300, 790) == pytest.approx(65.2, rel=0.02)


@pytest.mark.parametrize(("size", "sets"), [(1e9, 2), (30e6, 5), (1e3, 128)])
def test_buffers_rotate_until_the_cache_is_cold(size, sets):
    assert rotations(size, 50e6) == sets


def test_lengths_are_the_same_every_time():
    assert uniform(8, 64, 196) == uniform(8, 64, 196)
    assert uniform(1, 7, 7) == (7,)


def test_padding_and_back():
    x = Buffers(SMALL, torch.float32, CPU)
    assert torch.equal(x.unpad(x.pad(x.dout).transpose(1, 2)), x.dout)
    assert x.document.tolist() == [0] * 12 + [1] * 5 + [2] * 12
    assert not torch.equal(Buffers(SMALL, torch.float32, CPU, seed=1).q, x.q)


# ---- peers


@pytest.mark.parametrize("work", [SMALL, EVEN], ids=lambda work: work.name)
@pytest.mark.parametrize("name", ["sdpa padded efficient", "sdpa padded flash", "sdpa nested"])
def test_peers_that_run_on_a_cpu_match_fp64(name, work):
    x = Buffers(work, torch.float32, CPU)
    prepared = PEERS[name].prepare(x)
    attention.Oracle(x).judge_peer(prepared)
    assert (prepared.rows is None) == (name != "sdpa padded flash" or work is EVEN)


def test_flex_attention_matches_fp64():
    x = Buffers(SMALL, torch.float32, CPU)
    oracle = attention.Oracle(x)
    x.q, x.k, x.v = (leaf.detach() for leaf in x.leaves)  # on a CPU it has no backward pass
    error = peers.relative_error(PEERS["flex_attention"].prepare(x).forward(), oracle.plain[0], None)
    assert error < 1e-5


def test_unmasked_padding_is_not_called_exact():
    flash = PEERS["sdpa padded flash"]
    assert not peers.is_exact(flash, SMALL.lengths)
    assert peers.is_exact(flash, EVEN.lengths)
    x = Buffers(SMALL, torch.float32, CPU)
    prepared = flash.prepare(x)
    everywhere = peers.relative_error(x.unpad(prepared.forward()), attention.Oracle(x).plain[0], None)
    assert everywhere > peers.MAX_ERROR


@pytest.mark.parametrize("wrong", ["out", "dk"])
def test_a_wrong_peer_is_found(wrong):
    x = Buffers(SMALL, torch.float32, CPU)
    right = PEERS["sdpa padded efficient"].prepare(x)

    def backward():
        dq, dk, dv = right.backward()
        return dq, dk * (1.1 if wrong == "dk" else 1), dv

    forward = (lambda: right.forward() * 1.1) if wrong == "out" else right.forward
    with pytest.raises(AssertionError, match=f"{wrong}: relative error"):
        attention.Oracle(x).judge_peer(peers.Prepared(forward, backward, right.packed))


def test_nan_is_an_infinite_error():
    assert peers.relative_error(torch.tensor([float("nan")]), torch.ones(1), None) == float("inf")


def test_what_is_not_installed_says_so():
    for name, package in (("cudnn thd", "cudnn"), ("flash-attn-4", "flash_attn")):
        if package not in sys.modules and not checks.importlib.util.find_spec(package):
            with pytest.raises(peers.UnavailableError, match="is not installed"):
                PEERS[name].prepare(Buffers(SMALL, torch.float32, CPU))


# ---- timing


def test_a_sample_is_a_pass_over_all_buffers():
    called = []
    calls = {"a": [lambda: called.append(0), lambda: time.sleep(0.004)]}
    times = timing.time_methods(calls, CPU, seconds=0)
    assert len(called) >= 3
    assert not times["a"].graph
    assert 0.002 <= common.quantiles(times["a"].eager)["p50"] < 0.1
    columns = timing.columns(times["a"])
    assert columns["graph_samples"] == 0
    assert columns["eager_samples"] == 3
    assert columns["eager_p50_us"] >= 2000


def test_errors_that_end_a_process():
    assert timing.is_fatal(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not timing.is_fatal(RuntimeError("Device-side assertions were explicitly omitted"))
    assert timing.reason(ValueError("a\nb")) == "ValueError: a"


# ---- measuring parts


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(not NATIVE, reason="the compiled extension is missing")
def test_attention_rows(tmp_path, capsys):
    assert attention.main(["--quick", "--device", "cpu", "--seconds", "60", "--output", str(tmp_path)]) == 0
    rows = read(tmp_path / "attention.csv")
    assert {row["method"] for row in rows} >= {"cpu", "cpu + key weight", "sdpa padded efficient", "sdpa nested"}
    assert {row["direction"] for row in rows} == {"fwd", "bwd"}
    for row in rows:
        assert 0 < float(row["eager_p20_us"]) <= float(row["eager_p50_us"]) <= float(row["eager_p80_us"])
        assert float(row["floor_us"]) > 0
        assert all(row[name] for name in ("machine", "torch", "commit", "date", "copy_gb_s", "peak_gflop_s"))
        # Unmasked padding does other work where lengths differ, and no method is compared with that.
        assert row["eager_best_peer"] in ("sdpa padded efficient", "sdpa nested", "sdpa padded flash")
        if row["workload"] == "4 x 16..64":
            assert row["eager_best_peer"] != "sdpa padded flash"
    assert "left out: varlen_attn: not on a CPU" in capsys.readouterr().out


@pytest.mark.skipif(not NATIVE, reason="the compiled extension is missing")
def test_a_wrong_backend_is_not_timed(monkeypatch, tmp_path, capsys):
    resolve_function = dispatch.resolve_function

    def resolve(op, name, backend, *arguments, **details):
        function = resolve_function(op, name, backend, *arguments, **details)
        if (name, backend) == ("varlen_attention_bwd", "cpu"):
            return lambda *inputs: tuple(x if x is None else x * 1.001 for x in function(*inputs))
        return function

    monkeypatch.setattr(dispatch, "resolve_function", resolve)
    assert attention.main(["--quick", "--device", "cpu", "--seconds", "0", "--output", str(tmp_path)]) == 1
    assert "cpu + key weight" not in {row["method"] for row in read(tmp_path / "attention.csv")}
    assert "FAILED cpu + key weight" in capsys.readouterr().out


def test_token_operator_rows(tmp_path):
    arguments = ["--quick", "--device", "cpu", "--seconds", "60", "--output", str(tmp_path)]
    assert token_operators.main(arguments) == 0
    rows = read(tmp_path / "token_operators.csv")
    found = {(row["operator"], row["images"], row["direction"]) for row in rows}
    assert {operator for operator, *_ in found} == {"mixed_scale_embed", "mixed_scale_layout", "unpack_to_grid"}
    assert {("mixed_scale_embed", "uint8", "bwd"), ("mixed_scale_embed", "float", "fwd")} <= found
    assert all(float(row["eager_p50_us"]) > 0 for row in rows)


def test_small_shapes_are_compared(capsys):
    assert small_shapes.main(["--device", "cpu", "--backend", "cpu"]) == 0
    assert capsys.readouterr().out.count("ok ") == (4 if NATIVE else 0)


# ---- rows to verdicts


def row(**values):
    base = {"head_dim": "64", "ours": "True", "exact": "True", "graph_times_varlen_attn": "", "host_us": ""}
    return base | {key: str(value) for key, value in values.items()}


def test_targets(tmp_path):
    common.write_csv(
        tmp_path / "attention.csv",
        [
            row(workload=HEADLINE, direction="fwd", method="cuda", graph_p50_us=30, graph_times_varlen_attn=1.5),
            row(workload=HEADLINE, direction="fwd", method="triton", graph_p50_us=60, graph_times_varlen_attn=0.8),
            row(workload=HEADLINE, direction="bwd", method="cuda", graph_p50_us=50, graph_times_varlen_attn=4),
            row(workload=HEADLINE, direction="bwd", method="cuda + key weight", graph_p50_us=70),
            row(workload="57 x 576", direction="fwd", method="cuda", graph_p50_us=100),
            row(workload="57 x 576", direction="fwd", method="varlen_attn", ours=False, graph_p50_us=110),
            row(workload="57 x 576", direction="fwd", method="sdpa padded cudnn", ours=False, graph_p50_us=96),
            row(workload="57 x 576", direction="fwd", method="sdpa padded flash", ours=False, graph_p50_us=1),
        ],
    )
    common.write_csv(
        tmp_path / "latency_bf16.csv",
        [{"method": "packed graph", "wanted_tokens": 98, "batch": 256, "times_compiled": 2.0}],
    )
    found = {each.what: each for each in targets.all_targets(tmp_path)}
    forward = found[f"attention fwd, {HEADLINE} x 6 heads of 64"]
    assert (forward.measured, forward.met) == (30, True)
    backward = found[f"attention bwd, {HEADLINE} x 6 heads of 64, key-weight gradient"]
    assert (backward.measured, backward.met) == (70, False)
    against = found["attention fwd, 57 x 576, against the best of cuDNN and varlen_attn"]
    assert (against.measured, against.met) == (0.96, True)
    assert found["packed MSViT-S, 98 tokens, batch 256, CUDA graph, against the compiled ViT-S"].met
    assert found["training step, packed against masked"].met is None
    assert [each.met for each in targets.all_targets(tmp_path)][1] is False  # 1.5x of varlen_attn, 1.6x wanted
    lines = summary.report_lines(tmp_path / "nothing", with_targets=True)
    assert sum("not measured" in line for line in lines) == len(found) + 1  # one name occurs twice


def test_unverified_lines_that_tests_cover():
    text = checks.UNVERIFIED.read_text()
    lines = checks.unverified_lines(text)
    assert all((common.ROOT / file).exists() for file, _ in lines)
    lines = [
        ("msvit_kernels/triton/varlen_attention.py", "_fwd_kernel"),
        ("csrc/cuda/varlen_attention_bwd_a.cu", "bwd"),
    ]
    passed = {
        "tests/test_varlen_attention.py::test_a[triton-cuda-float32]": "PASSED",
        "tests/test_varlen_attention.py::test_a[cuda-cuda-float32]": "PASSED",
    }
    assert checks.covered(lines, passed) == lines
    assert checks.covered(lines, passed | {"tests/test_varlen_attention.py::b[cuda-cuda]": "FAILED"}) == lines[:1]
    assert checks.covered(lines, {"tests/test_varlen_attention.py::test_a[triton-cpu]": "PASSED"}) == []


def test_outcomes_are_read_with_and_without_xdist():
    output = (
        "tests/test_a.py::test_b[lengths[1, 2]-triton-cuda] PASSED                 [  1%]\n"
        "tests/test_a.py::test_c FAILED                                            [  2%]\n"
        "[gw3] [ 10%] PASSED tests/test_a.py::test_d[[1, 2]-cuda-cuda] \n"
        "tests/test_a.py::test_running \n"
    )
    outcomes = checks.parse_outcomes(output)
    assert outcomes == {
        "tests/test_a.py::test_b[lengths[1, 2]-triton-cuda]": "PASSED",
        "tests/test_a.py::test_c": "FAILED",
        "tests/test_a.py::test_d[[1, 2]-cuda-cuda]": "PASSED",
    }
    assert checks.count(outcomes) == "2 passed, 1 failed"


def test_builds_what_is_missing_or_old(tmp_path):
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    (tmp_path / "msvit_kernels").mkdir()
    source = tmp_path / "csrc" / "cpu" / "a.cpp"
    source.touch()
    assert "missing" in checks.needs_build(tmp_path)
    for name in ("_C.x.so", "_cuda.x.so"):
        (tmp_path / "msvit_kernels" / name).touch()
        os.utime(tmp_path / "msvit_kernels" / name, (time.time() + 5, time.time() + 5))
    assert checks.needs_build(tmp_path) == ""
    os.utime(source, (time.time() + 10, time.time() + 10))
    assert checks.needs_build(tmp_path) == "_C is older than its sources"


def test_what_a_sanitizer_says():
    output = "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 1 error\n"
    assert "Invalid __global__ write" in checks.verdict(commands.Result(86, output, 1), 10)
    clean = commands.Result(0, "ok\n========= ERROR SUMMARY: 0 errors\n", 1)
    assert checks.verdict(clean, 10) == "ERROR SUMMARY: 0 errors"
    assert checks.verdict(commands.Result(None, "", 10), 10) == "no summary; stopped after 10 s"


def test_counters_are_read():
    stalls = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
    columns = ["ID", "Kernel Name", "gpu__time_duration.sum", "dram__bytes_read.sum",
               "sm__warps_active.avg.pct_of_peak_sustained_active", stalls.format("long_scoreboard"),
               stalls.format("selected"), stalls.format("barrier")]  # fmt: skip
    lines = [
        columns,
        ["", "", "usecond", "Gbyte", "%", "inst", "inst", "inst"],
        ["0", "void msvit::fwd<(int)64, (bool)1>(float*)", "31.5", "0.1", "60", "3.5", "1", "4"],
    ]
    output = "==PROF== Profiling\n" + "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)
    (found,) = ncu.parse(output)
    assert found["kernel"] == "msvit::fwd<64, 1>"
    assert (found["time_us"], found["dram_read_mb"], found["occupancy"]) == (31.5, 100, 60)
    assert found["tensor_share"] is None
    assert found["stalls"] == "barrier 4.00, long_scoreboard 3.50"
    assert ncu.parse("==ERROR== no permission") == []


# ---- the command


def test_a_command_is_stopped_at_its_limit():
    result = commands.run([sys.executable, "-c", "print('begun'); import time; time.sleep(60)"], limit=2)
    assert result.code is None
    assert result.output == "begun\n"
    assert result.seconds < 20
    assert result.failure(2) == "stopped after 2 s"
    assert commands.run(["/nowhere/program"], limit=1).code == 127
    assert commands.find("no-such-program") is None


def test_a_part_that_fails_stops_nothing(monkeypatch, tmp_path, capsys):
    def broken(report, seconds):
        raise RuntimeError("no luck")

    monkeypatch.setitem(gpu_report.PARTS, "tests", broken)
    code = gpu_report.main(["--parts", "tests,sanitizer,profile", "--device", "cpu", "--output", str(tmp_path)])
    assert code == 1
    printed = capsys.readouterr().out
    assert "tests            failed" in printed
    assert "sanitizer        skipped" in printed
    assert "| tests | failed | 0 s | no luck |" in (tmp_path / "report.md").read_text()


def test_without_a_gpu_nothing_fails(capsys):
    assert gpu_report.main(["--parts", "build,tests,sanitizer,latency,profile", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("skipped after") == 5
    assert "no GPU on this machine" in printed


def test_time_that_is_over(capsys):
    assert gpu_report.main(["--parts", "attention", "--device", "cpu", "--seconds", "1"]) == 0
    assert "attention skipped after 0 s: the time is over" in capsys.readouterr().out


def test_every_part_has_its_share():
    assert list(gpu_report.PARTS) == list(gpu_report.SHARES)


def test_wrong_part():
    with pytest.raises(SystemExit) as caught:
        gpu_report.main(["--parts", "attention,lunch"])
    assert caught.value.code.startswith("error: --parts: expected some of build, tests")
    assert caught.value.code.endswith("got 'lunch'")


# ---- the latency bench on a GPU, and the README


def latency_row(method, tokens, batch, milliseconds, **more):
    quantiles = {f"all_p{q}_ms": milliseconds for q in common.QUANTILES}
    graph = method.endswith("graph")
    quantiles |= {f"transformer_p{q}_ms": None if graph else milliseconds / 2 for q in common.QUANTILES}
    facts = {
        "machine": "GPU X",
        "threads": 1,
        "isa": "none",
        "dtype": "bf16",
        "commit": "abc",
        "torch": "3",
        "triton": "4",
    }
    row = {"method": method, "wanted_tokens": tokens, "tokens": tokens, "batch": batch, "image_size": 224}
    return row | {"gmacs": tokens * 0.02, "times_compiled": None, "date": "2030"} | quantiles | facts | more


def test_graphs_have_no_time_of_their_blocks(tmp_path):
    columns = latency._columns([(None, 0.25), (None, 0.5)])
    assert columns["transformer_p50_ms"] is None
    assert columns["all_p80_ms"] == pytest.approx(450)
    rows = [latency_row(method, 64, 1, 2.0) for method in ("dense", "packed", "packed graph")]
    cells = latency._cells(rows[2] | {"times_masked": None, "times_dense": 2.0, "share_of_peak": 0.5})
    assert cells[:6] == ["packed graph", "64", "1.28", "", "", "2.00"]
    latency.plot_latency(rows, tmp_path / "a.png")
    latency.plot_latency(rows[:2], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_graphs_need_a_gpu(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["latency.py", "--device", "cpu", "--cuda-graph"])
    with pytest.raises(SystemExit) as caught:
        latency.main()
    assert caught.value.code == "error: --cuda-graph: expected a GPU, got a CPU"


def test_readme_shows_what_a_gpu_measured(tmp_path):
    folder = tmp_path / "bench" / "results" / "cuda-gpu-x"
    rows = [latency_row("packed", 98, 256, 0.05), latency_row("packed graph", 98, 256, 0.04, times_compiled=2.0)]
    rows += [latency_row("masked", 98, 256, 0.3), latency_row("packed", 98, 1, 1.5)]
    common.write_csv(folder / "latency_bf16.csv", rows)
    attention_rows = [
        row(workload=HEADLINE, direction="fwd", method="cuda", graph_p50_us=30, floor_us=24, date="2031"),
        row(workload=HEADLINE, direction="fwd", method="cuda + key weight", graph_p50_us=20, floor_us=24),
        row(workload=HEADLINE, direction="fwd", method="varlen_attn", ours=False, graph_p50_us=60, floor_us=24),
        row(workload=HEADLINE, direction="fwd", method="sdpa padded flash", ours=False, exact=False, graph_p50_us=1),
    ]
    common.write_csv(folder / "attention.csv", [each | rows[0] | each for each in attention_rows])
    text = "\n".join(readme_gpu.section(folder.parent))
    assert "GPU X (torch 3" in text
    assert "| 98 | 1.96 |  | 1.5 |  | 0.3 |  | 0.04 | 6.0 |" in text
    assert "2.00x as fast as the compiled ViT-S/16" in text
    assert f"| {HEADLINE} | fwd | 30.0 | 24.0 | varlen_attn | 60.0 | 2.00x |" in text
    assert "bench/results/cuda-gpu-x/report.md" in text


def test_readme_says_that_no_gpu_was_measured(tmp_path):
    (tmp_path / "UNVERIFIED.md").write_text("| `msvit_kernels/triton/a.py` | `b` |")
    assert "so\nthere is no GPU table yet" in "\n".join(readme_gpu.section(tmp_path))


def test_commit_of_a_copy_without_git(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("MSVIT_COMMIT", "0123456789ab")
    assert common.commit() == "0123456789ab"


# ---- the paths of a GPU, with stand-ins


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
