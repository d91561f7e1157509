"""Checkpoints: complete or not there, whole or named, and never the only one while the next is being written."""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import msvit
from msvit.training import load_run, resume_run, start_run
from msvit.training.checkpoints import Checkpoint, checkpoint_folders, latest_checkpoint, write_checkpoint
from msvit.training.journal import Journal
from msvit.training.metrics import columns_of, read_metrics
from msvit_kernels.leftovers import temporary_path
from tests.disk_events import record_disk_events
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
    expected = (
        r"step-00000003 cannot be written \(.*File too large.*; the newest checkpoint is .*step-00000002; --resume"
    )
    with full_disk(size), pytest.raises(OSError, match=expected) as caught:
        write_checkpoint(tmp_path, 3, model(), None, {"much": torch.zeros(10_000)})
    assert caught.value.errno == errno.EFBIG, "the system's reason, whichever library wrote the file"
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert latest_checkpoint(tmp_path).step == 2
    write(tmp_path, 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_files_are_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = record_disk_events(monkeypatch)
    final = write_checkpoint(tmp_path, 1, model(), model(), {})
    *files, renamed, flushed = events
    assert (renamed, flushed) == (("rename", final), ("flush", final.parent))
    assert len(files) == 4 * 3
    for i, name in enumerate(("model.safetensors", "loss.safetensors", "trainer.pt", "manifest.json")):
        (first, unfinished), rename, (last, folder) = files[3 * i : 3 * i + 3]
        assert (first, last, unfinished.parent) == ("flush", "flush", folder)
        assert rename == ("rename", folder / name)
        assert unfinished != folder / name


def test_a_state_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"step": 1, "optimizers": [Malicious()]}, tmp_path / "trainer.pt")
    with pytest.raises(ValueError, match=r"trainer\.pt cannot be read"):
        Checkpoint(tmp_path, 1).trainer_state()
    assert not (tmp_path / "executed").exists()


def test_damaged_ones_of_later_steps_do_not_displace_good_ones(tmp_path: Path) -> None:
    for step in (1, 2, 8):
        write(tmp_path, step)
    write(tmp_path, 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_only_whole_names_count_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        write(tmp_path, step)
    newest = checkpoint_folders(tmp_path)[0]
    for name in ("step-100000001.old", "step-new"):
        shutil.copytree(newest, newest.with_name(name))
    assert latest_checkpoint(tmp_path).step == 100_000_000


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


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"step": 2, "files": [1]}', "expected digests of model.safetensors and trainer.pt"),
        (b'{"step": 2, "files": {}}', "expected digests of model.safetensors and trainer.pt"),
        (b'{"step": 2, "files": {"model.safetensors": ""}}', "expected digests of model.safetensors and trainer.pt"),
        (b'{"step": 1, "files": {"model.safetensors": "", "trainer.pt": ""}}', "expected step 2, got 1"),
        (b'{"step": 2}', "KeyError"),
        (b"[1]", "TypeError"),
        (b"\xff\x00", "UnicodeDecodeError"),
    ],
    ids=["list", "empty", "no-trainer", "other-step", "no-files", "no-object", "binary"],
)
def test_a_manifest_that_proves_nothing_is_damage(tmp_path: Path, content: bytes, problem: str) -> None:
    write(tmp_path, 1)
    (write(tmp_path, 2) / "manifest.json").write_bytes(content)
    with pytest.warns(UserWarning, match=f"step-00000002 is damaged .*manifest.json: .*{problem}"):
        assert latest_checkpoint(tmp_path).step == 1


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both in a run that continues, before its first step, and with the next checkpoint."""
    run = start_run(small_config(epochs=1), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 999_999_999)
        left = [temporary_path(path) for path in (run.checkpoint().folder, tmp_path / "metrics.csv")]
    for path in left:
        path.mkdir()
    resume_run(tmp_path)
    assert not any(path.exists() for path in left)
    left[0].mkdir()
    write(tmp_path, 5)
    assert not left[0].exists()


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
    with (
        full_disk(60_000),
        pytest.raises(OSError, match=r"step-00000004 cannot be written .*there is no checkpoint yet"),
    ):
        start_run(config, tmp_path / "run")
    assert resume_run(tmp_path / "run").metrics[-1]["test_loss"] == expected.metrics[-1]["test_loss"]


def test_a_disk_that_is_full_at_the_log_names_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: Journal, row: dict[str, float], priors: object) -> None:
        if row["epoch"] == 2:
            Path("/dev/full").write_text("row")

    monkeypatch.setattr(Journal, "write", write)
    expected = r"log of .* cannot be written \(the disk is full\); the newest checkpoint is .*step-00000004; --resume"
    with pytest.raises(OSError, match=expected):
        start_run(small_config(), tmp_path)


@pytest.mark.parametrize("content", [b"\x93NUMPY\xff\x00", b"epoch\n1,2\n", b"\x00\n\x01", b"epoch\n1\n"])
def test_damaged_metrics_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.csv: expected (numbers|the columns epoch, step, .*, got epoch$)"):
        read_metrics(tmp_path, columns_of(["test_loss"]))
