"""Checkpoints: complete or not there, whole or named, and never the only one while the next is being written."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import msvit
from msvit.training import load_run, resume_run, start_run
from msvit.training.checkpoints import latest_checkpoint, write_checkpoint
from tests.model.training.run_helpers import small_config


def model(value: float = 1.0) -> nn.Module:
    layer = nn.Linear(64, 64)
    nn.init.constant_(layer.weight, value)
    return layer


def write(run: Path, step: int) -> Path:
    return write_checkpoint(
        run, step, model(step), None, {"step": step, "sums": {"loss": 0.1}, "list": [torch.ones(2)]}
    )


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Limits every file to `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    found = latest_checkpoint(tmp_path)
    assert (found.step, found.folder.name) == (3, "step-00000003")
    state = found.trainer_state()
    assert (state["step"], state["sums"], state["list"][0].tolist()) == (3, {"loss": 0.1}, [1, 1])
    loaded = nn.Linear(64, 64)
    msvit.load_checkpoint(loaded, found.folder / "model.safetensors")
    assert (loaded.weight == 3).all()


@pytest.mark.parametrize("size", [0, 5000, 16_900], ids=["nothing", "part-of-the-model", "part-of-the-rest"])
def test_full_disk_leaves_the_previous_one(tmp_path: Path, size: int) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    with full_disk(size), pytest.raises(OSError, match="cannot be written") as caught:
        write_checkpoint(tmp_path, 3, model(), None, {"much": torch.zeros(10_000)})
    assert "the previous one is" in str(caught.value)
    assert "step-00000002" in str(caught.value)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert latest_checkpoint(tmp_path).step == 2
    write(tmp_path, 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("file", "how"),
    [
        *((file, how) for file in ("model.safetensors", "trainer.pt") for how in ("flipped", "cut", "missing")),
        ("manifest.json", "cut"),
        ("manifest.json", "missing"),
    ],
)
def test_damage_is_named_and_the_one_before_used(tmp_path: Path, file: str, how: str) -> None:
    write(tmp_path, 1)
    damage(write(tmp_path, 2) / file, how)
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert latest_checkpoint(tmp_path).step == 1
    damage(tmp_path / "checkpoints" / "step-00000001" / file, how)
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(ValueError, match="all of its checkpoints are"):
        latest_checkpoint(tmp_path)


def test_unfinished_ones_do_not_count(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a checkpoint, got none"):
        latest_checkpoint(tmp_path)
    write(tmp_path, 1)
    (tmp_path / "checkpoints" / ".step-00000002-123").mkdir()
    assert latest_checkpoint(tmp_path).step == 1


def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(tmp_path: Path) -> None:
    expected = start_run(small_config(), tmp_path)
    damage(tmp_path / "checkpoints" / "step-00000008" / "model.safetensors", "flipped")
    with pytest.warns(UserWarning, match="step-00000008 is damaged"):
        again = resume_run(tmp_path)
    assert [row["test_loss"] for row in again.metrics] == [row["test_loss"] for row in expected.metrics]
    assert load_run(tmp_path).checkpoint().step == 8


def test_a_run_on_a_full_disk_ends_with_a_clear_error_and_goes_on_later(tmp_path: Path) -> None:
    config = small_config(epochs=1)
    expected = start_run(config, tmp_path / "whole")
    with full_disk(60_000), pytest.raises(OSError, match="step-00000004 cannot be written"):
        start_run(config, tmp_path / "run")
    assert resume_run(tmp_path / "run").metrics[-1]["test_loss"] == expected.metrics[-1]["test_loss"]
