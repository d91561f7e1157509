"""A run that was interrupted continues to the same numbers, bit for bit, wherever it stopped."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from msvit.training import load_run, resume_run, start_run
from msvit.training.checkpoints import Checkpoint
from tests.model.training.run_helpers import SMALL, assert_same_run, image_folder, interrupted, small_config

CASES: list[Any] = [
    pytest.param(1, {"checkpoint_steps": 1}, id="in-the-first-epoch"),
    pytest.param(4, {"checkpoint_steps": 1}, id="between-epochs"),
    pytest.param(6, {"checkpoint_steps": 1}, id="in-the-second-epoch"),
    pytest.param(6, {"checkpoint_steps": 2, "gate": "random", "loss": "none"}, id="random-gate"),
    pytest.param(
        5,
        {"checkpoint_steps": 1, "accumulate": 2, "drop_path": 0.5, "optimizer": "momentum", "token_mode": "masked"},
        id="accumulated-masked-sgd",
    ),
]


@pytest.mark.parametrize(("steps", "values"), CASES)
def test_interrupted_runs_continue_to_the_same_losses(tmp_path: Path, steps: int, values: dict[str, Any]) -> None:
    config = small_config(**values)
    expected = start_run(config, tmp_path / "whole")
    with interrupted(after_steps=steps):
        start_run(config, tmp_path / "parts")
    assert load_run(tmp_path / "parts").checkpoint().step == steps
    assert_same_run(resume_run(tmp_path / "parts"), expected)


def test_interrupted_twice_and_before_the_first_checkpoint(tmp_path: Path) -> None:
    expected = start_run(small_config(), tmp_path / "whole")
    for steps in (2, 5, 1):  # from the start; from the start again; from the checkpoint after step 4
        with interrupted(after_steps=steps):
            if (tmp_path / "parts").exists():
                resume_run(tmp_path / "parts")
            else:
                start_run(small_config(), tmp_path / "parts")
    assert_same_run(resume_run(tmp_path / "parts"), expected)


def test_interrupted_between_metrics_and_checkpoint(tmp_path: Path) -> None:
    """The row of an epoch is there, its checkpoint is not: the row is written again, not twice."""
    expected = start_run(small_config(), tmp_path / "whole")
    with interrupted(before_checkpoint=8):
        start_run(small_config(), tmp_path / "parts")
    assert [row["epoch"] for row in load_run(tmp_path / "parts").metrics] == [1, 2]
    assert_same_run(resume_run(tmp_path / "parts"), expected)


def test_augmented_images_of_other_processes(tmp_path: Path) -> None:
    """Crops and flips are the same after an interruption, and for any number of worker processes."""
    data = str(image_folder(tmp_path / "data"))
    values: dict[str, Any] = {"data": data, "crops": "inception", "flip": 0.5, "color_jitter": 0.3, "batch_size": 4}
    config = small_config(**values, num_workers=2, checkpoint_steps=1)
    expected = start_run(config, tmp_path / "whole")
    with interrupted(after_steps=3):
        start_run(config, tmp_path / "parts")
    assert_same_run(resume_run(tmp_path / "parts"), expected)
    assert_same_run(start_run(config.replace(num_workers=0), tmp_path / "one"), expected)


def test_killed_process(tmp_path: Path) -> None:
    """kill -9 in the middle of an epoch; the command continues, and finishes as if nothing had been."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    options += ["--preset=digits", "--checkpoint-steps=1", "--epochs=12"]
    run = tmp_path / "run"
    command = [sys.executable, "-m", "msvit", "train"]
    process = subprocess.Popen([*command, *options, "-o", run], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not list(run.glob("checkpoints/step-0000000[2-9]")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = load_run(run)
    assert 2 <= before.checkpoint().step < 48
    expected = start_run(small_config(checkpoint_steps=1, epochs=12), tmp_path / "whole")
    assert_same_run(resume_run(run), expected)


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    run = start_run(small_config(), tmp_path / "run")
    again = resume_run(tmp_path / "run")
    assert again.metrics == run.metrics
    assert again.checkpoint().step == 8


@pytest.mark.parametrize(
    ("processes", "warning"),
    [(None, "an older version wrote it"), (4, "4 processes wrote it, and the run continues with 1")],
)
def test_another_number_of_processes_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int | None, warning: str
) -> None:
    """The state is one of a long run, whose seconds and losses continue."""
    read = Checkpoint.trainer_state

    def trainer_state(self: Checkpoint) -> dict[str, Any]:
        state = read(self)
        assert state.pop("processes") == 1
        sums = state["sums"] | {"train_tokens_per_image": 100.0}
        return state | {"seconds": 1e6, "sums": sums} | ({"processes": processes} if processes else {})

    with interrupted(after_steps=1):
        start_run(small_config(epochs=1, gate="coarse", checkpoint_steps=1), tmp_path / "run")
    monkeypatch.setattr(Checkpoint, "trainer_state", trainer_state)
    with pytest.warns(UserWarning, match=f"step-00000001: {warning}"):
        row = resume_run(tmp_path / "run").metrics[0]
    assert row["seconds"] > 1e6
    assert row["train_tokens_per_image"] == (100 + 3 * 4) / 4


def test_other_training_images_are_refused(tmp_path: Path) -> None:
    with interrupted(after_steps=1):
        start_run(small_config(), tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"train_size": 64', '"train_size": 80'))
    with pytest.raises(ValueError, match="run: expected 4 steps per epoch from the training images, got 5"):
        resume_run(tmp_path / "run")
