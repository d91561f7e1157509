"""The files of processes that were killed are removed; those of processes that run are not."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from msvit_kernels import leftovers
from msvit_kernels.files import write_text
from msvit_kernels.leftovers import remove_leftovers, temporary_path


@pytest.fixture(scope="module")
def zombie() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has ended and whose parent has not asked how."""
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process


@pytest.fixture
def left(tmp_path: Path, zombie: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hidden file of a process that has ended, for a.txt."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: zombie.pid)
        path = temporary_path(tmp_path / "a.txt")
    path.touch()
    return path


def test_the_next_writer_removes_it(tmp_path: Path, left: Path) -> None:
    write_text(tmp_path / "b.txt", "")
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


def test_folders_too(tmp_path: Path, left: Path) -> None:
    left.unlink()
    (left / "deep").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())
    remove_leftovers(tmp_path / "none")


def test_a_process_number_that_was_used_again(tmp_path: Path) -> None:
    own = temporary_path(tmp_path / "a.txt")
    machine, process, _ = own.name.split(".")[2].split("-")
    other = own.with_name(f".a.{machine}-{process}-1.01234567.txt")
    for path in (own, other):
        path.touch()
    remove_leftovers(tmp_path)
    assert [*tmp_path.iterdir()] == [own]


def test_a_process_that_is_gone(tmp_path: Path, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(process: int, signal: int) -> None:
        raise error

    monkeypatch.setattr(os, "kill", kill)
    error: OSError = PermissionError()  # the process of another user
    remove_leftovers(tmp_path)
    assert left.exists()
    error = ProcessLookupError()
    remove_leftovers(tmp_path)
    assert not left.exists()


def test_other_machines_have_a_day(tmp_path: Path, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_machine", lambda: "01234567")
    remove_leftovers(tmp_path)
    assert left.exists()
    os.utime(left, (0, 0))
    remove_leftovers(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("name", [".a.txt", ".step-00000002-123", ".a.01234567-12-12.txt", ".tmpW2vEwy", "a-12-12.txt"])
def test_hidden_files_of_others_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (0, 0))
    remove_leftovers(tmp_path)
    assert (tmp_path / name).exists()
