"""Checks of the GPU report, by their output: tests, builds, sanitizers, and counters."""

import os
import time

from bench import ROOT
from bench.gpu_report import checks, commands, ncu, sanitizers
from msvit_kernels import dispatch


def test_unverified_lines_that_tests_cover():
    text = checks.UNVERIFIED.read_text()
    lines = checks.unverified_lines(text)
    assert all((ROOT / file).exists() for file, _ in lines)
    lines = [
        ("msvit_kernels/triton/varlen_attention.py", "_fwd_kernel"),
        ("csrc/cuda/varlen_attention_bwd_a.cu", "bwd"),
    ]
    passed = {
        "tests/kernels/test_varlen_attention.py::test_a[triton-cuda-float32]": "PASSED",
        "tests/kernels/test_varlen_attention.py::test_a[cuda-cuda-float32]": "PASSED",
    }
    assert checks.covered(lines, passed) == lines
    assert (
        checks.covered(lines, passed | {"tests/kernels/test_varlen_attention.py::b[cuda-cuda]": "FAILED"}) == lines[:1]
    )
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
    assert all((ROOT / file).exists() for file in files)
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
    assert "Invalid __global__ write" in sanitizers.verdict(commands.Result(86, output, 1), 10)
    clean = commands.Result(0, "ok\n========= ERROR SUMMARY: 0 errors\n", 1)
    assert sanitizers.verdict(clean, 10) == "ERROR SUMMARY: 0 errors"
    assert sanitizers.verdict(commands.Result(None, "", 10), 10) == "no summary; stopped after 10 s"


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
