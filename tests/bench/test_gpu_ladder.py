"""The three calls for a GPU that is available for a few minutes: kept results, and tried configurations."""

import json
import sys
import time

import pytest
import torch

from bench.gpu_report import checks, commands, first, small_jobs, small_shapes, tune_configs
from bench.gpu_report.ladder import Ladder, Step
from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward
from msvit_kernels.triton import varlen_attention as kernels


def make_ladder(folder, seconds=60):
    return Ladder(folder, "cpu", time.monotonic() + seconds)


def test_a_step_that_fails_or_hangs_stops_no_other(tmp_path):
    ladder = make_ladder(tmp_path)
    steps = [
        Step("fails", [sys.executable, "-c", "print('seen'); raise SystemExit(3)"], 30),
        Step("hangs", [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"], 3),
        Step("works", [sys.executable, "-c", "print('done')"], 30),
    ]
    results = [ladder.run(steps[0]), *ladder.at_once(steps[1:])]
    assert [result.code for result in results] == [3, None, 0]
    log = (tmp_path / "steps.log").read_text()
    assert all(word in log for word in ("seen", "begun", "done"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ladder.log", "steps.log"]
    assert sum("ok after" in line for line in ladder.endings) == 1


def test_output_outlives_whoever_runs_the_command(tmp_path):
    log = tmp_path / "log"
    commands.run([sys.executable, "-c", "print('kept')"], 30, log_path=log)
    assert log.read_text() == "kept\n"


def test_no_step_begins_when_the_time_is_over(tmp_path):
    result = make_ladder(tmp_path, seconds=1).run(Step("late", [sys.executable, "-c", "1 / 0"], 30))
    assert (result.code, result.seconds) == (None, 0)


def test_attention_is_measured_once_more_without_what_lost_the_device(monkeypatch, tmp_path):
    seen = []

    def run(self, step, alone=True):
        seen.append(step.command[step.command.index("--without") + 1])
        lost = len(seen) == 1
        return commands.Result(commands.LOST_DEVICE if lost else 0, "preparing: cuda\npreparing: cudnn thd\n", 1)

    monkeypatch.setattr(Ladder, "run", run)
    first.attention(make_ladder(tmp_path), 30, "--quick")
    assert seen == ["", "cudnn thd"]


def test_every_result_has_a_line_of_its_own_with_its_kernel(monkeypatch, tmp_path):
    path = tmp_path / "kernels.jsonl"
    arguments = ["--device", "cpu", "--jobs", "triton-unpack", "--dtypes", "fp32", "--json", str(path)]
    assert small_shapes.main(arguments) == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["result"] for row in rows] == ["grid", "dtokens"]
    assert first.kernel_lines(path) == [
        "triton unpack_to_grid.py _bwd_kernel: 1 of 1 right",
        "triton unpack_to_grid.py _fwd_kernel: 1 of 1 right",
    ]
    wrong = small_jobs.unpack

    def results(backend, dtype, place):
        for name, value in wrong(backend, dtype, place):
            yield name, value * (1.1 if backend == "triton" and name == "grid" else 1)

    monkeypatch.setattr(small_jobs, "unpack", results)
    assert small_shapes.main(arguments) == 1
    assert "unpack_to_grid.py _fwd_kernel: 1 of 2 right; float32 triton-unpack grid: error" in "".join(
        first.kernel_lines(path)
    )


def test_jobs_reach_every_kernel_that_is_listed_as_unverified():
    reached = {kernel for job in small_jobs.jobs() for kernel in job.kernels.values()}
    for file, kernel in checks.unverified_lines(checks.UNVERIFIED.read_text()):
        assert f"{file.rsplit('/', 1)[1]} {kernel}" in reached


def test_unknown_jobs_are_refused():
    with pytest.raises(SystemExit, match="error: --jobs: unknown nothing"):
        small_shapes.main(["--device", "cpu", "--jobs", "nothing"])


def test_configurations_in_use_are_among_those_that_are_tried():
    for kernel in tune_configs.KERNELS:
        tried = tune_configs.candidates(kernel)
        assert len({tuple(sorted(each.items())) for each in tried}) == len(tried)
        for longest in (49, 196, 577, 1024):
            assert kernels.launch_config(kernel, 64, longest, torch.bfloat16, 90) in tried, (kernel, longest)


def test_only_the_kernel_that_is_timed_is_launched(monkeypatch):
    launched = []
    monkeypatch.setattr(kernels, "launch", lambda function, *_, **options: launched.append((function, options)))
    config = tune_configs.candidates("dq")[0]
    q = torch.empty(8, 1, 64, dtype=torch.bfloat16)
    offsets = torch.tensor([0, 8], dtype=torch.int32)
    with tune_configs.forced("dq", config):
        call = VarlenAttention(q, q, q, offsets, offsets, 8, 8, 0.125)
        kernels.varlen_attention_fwd(call)
        kernels.varlen_attention_bwd(VarlenAttentionBackward(call, q, torch.empty(1, 8), q, None, False))
    ((function, options),) = launched
    assert function is kernels._bwd_dq_kernel
    assert config.items() <= options.items()
