"""bench/gpu_report.py without a GPU: its formulas, its peers against fp64, its parsers, its parts and its exit code."""

import os
import sys
import time

import common
import gpu_report
import pytest
import torch
from gpu import attention, checks, commands, ncu, peers, small_shapes, summary, targets, timing, token_operators
from gpu.workloads import HEADLINE, Buffers, Workload, gpu_workloads, rotations, uniform

from msvit_kernels import dispatch
from tests.bench.gpu_helpers import CPU, NATIVE, SMALL, made, read

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
    assert "left out: varlen_attn flash: not on a CPU" in capsys.readouterr().out


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
    assert capsys.readouterr().out.count("ok ") == (8 if NATIVE else 0)


# ---- rows to verdicts


def test_targets(tmp_path):
    common.write_csv(
        tmp_path / "attention.csv",
        [
            made(
                workload=HEADLINE,
                direction="fwd",
                method="cuda",
                graph_p50_us=30,
                graph_times_varlen_attn=1.5,
                share_of_copy=0.8,
            ),
            made(workload=HEADLINE, direction="fwd", method="triton", graph_p50_us=60, graph_times_varlen_attn=0.8),
            made(workload=HEADLINE, direction="bwd", method="cuda", graph_p50_us=50, graph_times_varlen_attn=4),
            made(workload=HEADLINE, direction="bwd", method="cuda + key weight", graph_p50_us=70, share_of_copy=0.5),
            made(workload="57 x 576", direction="fwd", method="cuda", graph_p50_us=100),
            made(workload="57 x 576", direction="fwd", method="varlen_attn flash", ours=False, graph_p50_us=110),
            made(workload="57 x 576", direction="fwd", method="sdpa padded cudnn", ours=False, graph_p50_us=96),
            made(
                workload="57 x 576",
                direction="fwd",
                method="sdpa padded flash",
                ours=False,
                exact=False,
                graph_p50_us=1,
            ),
        ],
    )
    latency = {"method": "packed graph", "wanted_tokens": 98, "batch": 256}
    common.write_csv(tmp_path / "latency_bf16.csv", [latency | {"times_compiled": 2.0, "date": "2031"}])
    common.write_csv(tmp_path / "latency_bf16_98-196.csv", [latency | {"times_compiled": 3.0, "date": "2030"}])
    found = {each.what: each for each in targets.all_targets(tmp_path)}
    forward = found[f"attention fwd, {HEADLINE}: share of the copy ceiling"]
    assert (forward.measured, forward.met) == (0.8, True)
    backward = found[f"attention bwd, {HEADLINE}, key-weight gradient: share of the copy ceiling"]
    assert (backward.measured, backward.met) == (0.5, False)
    against = found["attention fwd, 57 x 576, against the best peer"]
    assert (against.measured, against.met) == (0.96, False)  # padding that is attended to is no peer
    packed = "packed MSViT-S, 98 tokens, batch 256, compiled, CUDA graph, against the compiled ViT-S"
    assert (found[packed].measured, found[packed].met) == (2.0, True)  # without a compiled one, that of the graph
    assert found["training step, packed against masked"].met is None
    assert [each.met for each in targets.all_targets(tmp_path)][1] is False  # 1.5x of varlen_attn, 1.6x wanted
    lines = summary.report_lines(tmp_path / "nothing", with_targets=True)
    assert sum("not measured" in line for line in lines) == len(targets.all_targets(tmp_path / "nothing"))


def test_unverified_lines_that_tests_cover():
    text = checks.UNVERIFIED.read_text()
    lines = checks.unverified_lines(text)
    assert all((common.ROOT / file).exists() for file, _ in lines)
    lines = [
        ("msvit_kernels/triton/varlen_attention.py", "_fwd_kernel"),
        ("csrc/cuda/varlen_attention_bwd_a.cu", "bwd"),
    ]
    passed = {
        "tests/kernels/test_varlen_attention.py::test_a[triton-cuda-float32]": "PASSED",
        "tests/kernels/test_varlen_attention.py::test_a[cuda-cuda-float32]": "PASSED",
    }
    assert checks.covered(lines, passed) == lines
    assert checks.covered(lines, passed | {"tests/kernels/test_varlen_attention.py::b[cuda-cuda]": "FAILED"}) == lines[:1]
    assert checks.covered(lines, {"tests/kernels/test_varlen_attention.py::test_a[triton-cpu]": "PASSED"}) == []


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


def test_tests_that_run_on_a_gpu():
    command = checks.pytest_command(85, "cuda")
    files = [word for word in command if word.startswith("tests/")]
    assert files[0] == "tests/kernels/test_varlen_attention.py"
    assert all((common.ROOT / file).exists() for file in files)
    assert {f"tests/kernels/test_{operator}.py" for operator in dispatch.OPERATORS} <= set(files)
    assert command[command.index("-k") + 1] == "cuda-cuda or triton-cuda or reference-cuda"
    assert command[command.index("--timeout") + 1] == "42"
    assert [checks.workers(cores) for cores in (1, 2, 4, 16, 64)] == [1, 1, 2, 12, 12]


def test_outcomes_outlive_the_limit(tmp_path, monkeypatch):
    script = (
        "print('tests/test_a.py::test_b[1] PASSED [ 50%]')\nprint('tests/test_a.py::test_c ')\nimport time\n"
        "time.sleep(60)"
    )
    monkeypatch.setattr(checks, "pytest_command", lambda limit, device: commands.python("-c", script))
    result, outcomes = checks.run_tests(3, "cpu", tmp_path / "tests.log")
    assert result.code is None
    assert outcomes == checks.parse_outcomes((tmp_path / "tests.log").read_text())
    assert outcomes == {"tests/test_a.py::test_b[1]": "PASSED"}


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


def test_counters_carry_their_facts(monkeypatch):
    output = '"ID","Kernel Name","dram__bytes_read.sum"\n"","","Mbyte"\n"0","f(int)","7"'
    asked = []
    monkeypatch.setattr(commands, "find", lambda name: name)
    monkeypatch.setattr(commands, "run", lambda command, limit: asked.extend(command) or commands.Result(0, output, 1))
    _, (row,) = ncu.collect(1)
    assert (row["kernel"], row["dram_read_mb"]) == ("f", 7)
    assert row.keys() >= {"machine", "torch", "commit", "date"}
    assert "dram__bytes_read.sum,dram__bytes_write.sum" in asked


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


def test_report_of_rows_that_are_there(tmp_path):
    facts = {"machine": "GPU X", "torch": "3", "triton": "4", "timm": "1"}
    config = {"workload": HEADLINE, "kernel": "fwd", "weighted": True, "BLOCK_N": 32, "num_warps": 4, "num_stages": 3}
    rows = [
        config | facts | {"BLOCK_M": size, "p50_us": time, "usual": size == 16, "commit": "new", "date": "2031"}
        for size, time in ((16, 9), (32, 3), (64, 1.25), (128, 2))
    ]
    common.write_csv(tmp_path / "tune.csv", rows)
    counters = dict.fromkeys(ncu.COLUMNS, 1) | {"kernel": "f<int>", "stalls": "wait 2.00"}
    common.write_csv(tmp_path / "profile.csv", [counters | facts | {"machine": "-", "commit": "old", "date": "2030"}])
    assert gpu_report.main(["--tables", str(tmp_path)]) == 0
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# GPU report: GPU X\n\ntorch 3, triton 4, timm 1, commit old, new, 2031.")
    assert (
        text.index("## Targets")
        < text.index("| tune.csv | new | 2031 | 4 |")
        < text.index("of commit old.\n\n| kernel")
    )
    assert "| `f<int>` | 1.0 | 1.0 |" in text
    cells = "**1.2** 64x32 w4 s3 | **2.0** 128x32 w4 s3 | **3.0** 32x32 w4 s3 | **9.0** 16x32 w4 s3 |"
    assert f"| {HEADLINE} | fwd, key weight | {cells}" in text
    assert {path.name for path in tmp_path.iterdir()} == {"tune.csv", "profile.csv", "report.md"}


def test_report_of_no_rows(tmp_path):
    with pytest.raises(SystemExit, match="error: --tables: expected a folder with CSV rows"):
        gpu_report.main(["--tables", str(tmp_path)])


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
