"""Files appear complete or not at all, and their folder has no leftovers."""

import errno
from pathlib import Path

import pytest

from msvit_kernels.files import read_rows, replacing, write_rows, write_text
from tests.disk_events import record_disk_events


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_reader_sees_the_old_file_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".txt")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text(f"half of the {1 / 0}")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match=r"a\.txt: cannot be written \(the disk is full\)") as caught, replacing(path):
        Path("/dev/full").write_text("new")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = record_disk_events(monkeypatch)
    path = tmp_path / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert events == [("flush", temporary), ("rename", path), ("flush", tmp_path)]


def test_the_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.chmod(0o600)
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_places_that_no_file_can_take(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a.txt: expected a file in a folder that exists"):
        write_text(tmp_path / "none" / "a.txt", "")
    with pytest.raises(OSError, match="expected a file, got a folder"):
        write_text(tmp_path, "")
    with pytest.raises(OSError, match="expected a file, got a device"):
        write_text("/dev/null", "")


def test_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    write_rows(path, ["a", "b"], [{"a": 1, "b": "x, y"}, {"a": 0.5}])
    assert path.read_bytes() == b'a,b\n1,"x, y"\n0.5,\n'
    assert read_rows(path) == [{"a": "1", "b": "x, y"}, {"a": "0.5", "b": ""}]
    with pytest.raises(ValueError, match="'c'"):
        write_rows(path, ["a", "b"], [{"c": 1}])
    assert len(read_rows(path)) == 2
