"""The experiments: their runs, the skipping of finished runs, and their CSV rows."""

import sys
from dataclasses import replace

import pytest
import torch

from bench.experiments import __main__ as command
from bench.experiments import collect, jobs
from bench.experiments.jobs import make_jobs
from bench.experiments.settings import QUICK, SETTINGS
from bench.experiments.studies import DIGITS, SEGMENTATION
from bench.rows import read_rows
from msvit.training import load_run
from msvit.training.checkpoints import TRAINER_FILE, write_checkpoint
from msvit.training.metrics import METRICS_FILE, columns_of
from msvit.training.runs import create_run
from msvit_kernels.files import write_rows


def test_every_setting_is_a_configuration(tmp_path):
    waves = make_jobs(DIGITS, tmp_path, [], 3, False)
    made = [job for wave in waves for job in wave]
    assert len(made) == 3 * len(SETTINGS)
    assert [{job.setting.name for job in wave} for wave in waves][::2] == [{"pretrained"}, {"frozen", "frozen-masked"}]
    configs = [job.config() for job in made]  # raises where a value cannot be
    assert len({str(config) for config in configs}) == len(configs), "no two are alike"
    for job in made:
        from_scratch = job.setting.name in ("pretrained", "scratch")
        assert job.config().checkpoint == (
            None if from_scratch else str(tmp_path / f"pretrained-s{job.values['seed']}")
        )
        assert not job.is_finished()


def test_every_setting_of_segmentation_is_a_configuration(tmp_path):
    made = [job for wave in make_jobs(SEGMENTATION, tmp_path, [], 2, False) for job in wave]
    configs = [job.config() for job in made]
    assert len({str(config) for config in configs}) == len(made) == 2 * len(SEGMENTATION.settings)
    assert {config.task for config in configs} == {"segmentation"}


def test_what_is_wanted_brings_what_it_starts_from(tmp_path):
    names = [[job.folder.name for job in wave] for wave in make_jobs(DIGITS, tmp_path, ["frozen"], 1, True)]
    assert names == [["pretrained-s0"], ["gbas-s0"], ["frozen-s0"]]
    with pytest.raises(ValueError, match=r"--only: expected pretrained, .*, got nonsense"):
        make_jobs(DIGITS, tmp_path, ["nonsense"], 1, True)


def call(tmp_path, *options):
    paths = ("--runs", tmp_path / "runs", "--output", tmp_path / "rows.csv", "--page", tmp_path / "page.md")
    command.main([*map(str, (*paths, *options))])


def test_trains_collects_writes_and_skips_what_is_finished(monkeypatch, tmp_path, capsys):
    options = ("--quick", "--seeds", 1, "--only", "pretrained", "--jobs", 2)
    call(tmp_path, *options)
    assert "1 of 1 runs to train: pretrained-s0\npretrained-s0: finished" in capsys.readouterr().out
    run = load_run(tmp_path / "runs" / "pretrained-s0")
    (row,) = read_rows(tmp_path / "rows.csv")
    assert float(row["top1"]) == pytest.approx(run.metrics[-1]["top1"])
    assert float(row["gmacs"]) == pytest.approx(run.metrics[-1]["gmacs"], rel=1e-5)
    assert row["setting"] == "pretrained"
    assert f"| {100 * float(row['top1']):.1f} |" in (tmp_path / "page.md").read_text()
    before = (tmp_path / "page.md").read_text()
    call(tmp_path, *options)
    assert "0 of 1 runs to train" in capsys.readouterr().out
    call(tmp_path, "--write")
    assert (tmp_path / "page.md").read_text() == before
    monkeypatch.setitem(QUICK, "epochs", 2)
    with pytest.raises(SystemExit, match=r"pretrained-s0: a run with other values of epochs; remove it"):
        call(tmp_path, *options)


def test_no_finished_run_leaves_the_csv_as_it_is(tmp_path):
    (tmp_path / "rows.csv").write_text("kept")
    with pytest.raises(SystemExit, match=r"error: .*rows\.csv: not written, as no run is finished"):
        call(tmp_path, "--collect")
    assert (tmp_path / "rows.csv").read_text() == "kept"
    assert not (tmp_path / "page.md").exists()


def test_collecting_loses_no_row(monkeypatch, tmp_path):
    output = tmp_path / "rows.csv"
    study = replace(DIGITS, measure=lambda run, device: {})
    monkeypatch.setattr(collect, "load_run", lambda folder: int(folder.name[-1]))
    finished = {"pretrained-s0", "pretrained-s1", "l0-s0"}
    monkeypatch.setattr(jobs.Job, "is_finished", lambda job: job.folder.name in finished)

    def collected(seeds):
        collect.collect(study, make_jobs(DIGITS, tmp_path, [], seeds, True), output, torch.device("cpu"))
        return [f"{row['setting']}-s{row['seed']}" for row in read_rows(output)]

    assert collected(1) == ["pretrained-s0", "l0-s0"]
    assert collected(2) == ["pretrained-s0", "pretrained-s1", "l0-s0"]
    before = output.read_text()
    with pytest.raises(
        ValueError, match=r"it has rows of pretrained-s1, unfinished or beyond --seeds; remove it first"
    ):
        collected(1)
    finished.remove("l0-s0")
    with pytest.raises(ValueError, match=r"it has rows of l0-s0, unfinished or beyond --seeds; remove it first"):
        collected(2)
    assert output.read_text() == before
    output.unlink()
    assert collected(1) == ["pretrained-s0"]


@pytest.mark.parametrize("missing", ["--runs", "--output", "--page"])
def test_quick_needs_places_of_its_own(tmp_path, capsys, missing):
    given = [name for name in ("--runs", "--output", "--page") if name != missing]
    paths = [word for name in given for word in (name, str(tmp_path / name))]
    with pytest.raises(SystemExit):
        command.main(["--quick", "--collect", *paths])
    assert "--quick: expected --runs, --output and --page too" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_its_last_checkpoint_a_run_is_not_finished(tmp_path):
    ((job,), *_) = make_jobs(DIGITS, tmp_path, ["pretrained"], 1, True)
    derived = {"num_classes": 10, "image_size": [48, 48], "coarse": 16, "steps_per_epoch": 4, "gate_setting": None}
    run = create_run(job.folder, job.config(), derived)
    columns = columns_of(run.task.test_columns)
    write_rows(run.folder / METRICS_FILE, columns, [dict.fromkeys(columns, 1.0)])
    assert not job.is_finished(), "a row, but no checkpoint"
    write_checkpoint(run.folder, 3, torch.nn.Linear(1, 1), None, {})
    assert not job.is_finished(), "one of an earlier step"
    last = write_checkpoint(run.folder, 4, torch.nn.Linear(1, 1), None, {})
    assert job.is_finished()
    (last / TRAINER_FILE).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="is damaged"):
        assert not job.is_finished()
    assert "--resume" in job.command()


def test_nothing_to_write_from(tmp_path):
    with pytest.raises(SystemExit, match=r"rows\.csv: no such file"):
        call(tmp_path, "--write")


def test_failed_run_names_its_log(monkeypatch, tmp_path):
    monkeypatch.setattr(jobs.Job, "command", lambda job: [sys.executable, "-c", "import sys; sys.exit(3)"])
    with pytest.raises(SystemExit, match="failed: pretrained-s0"):
        call(tmp_path, "--quick", "--seeds", 1, "--only", "radial")
    assert (tmp_path / "runs" / "pretrained-s0.log").exists()
