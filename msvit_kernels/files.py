"""Files that appear complete or not at all: every file that someone may read while it is written is written here."""

import csv
import errno
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msvit_kernels.leftovers import remove_leftovers, temporary_path

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A context that writes a file in one step: a reader sees the old file or the new one, even after a power cut.

    It also removes what killed processes left in the folder.

    Args:
        path: the file to write; its folder must exist.

    Yields:
        An empty file in the same folder, with the same suffix, for the caller to fill. If the context ends without an
        error, the file is flushed to the disk and takes the place of `path`; otherwise it is removed.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: `path` is a folder or a device, or the file cannot be written; the old one is still there. The message
            names `path` and, if the disk is full, says so.
    """
    path = Path(path).resolve()  # a link stays a link
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a file in a folder that exists")
    if path.exists() and not path.is_file():
        raise OSError(f"{path}: expected a file, got {'a folder' if path.is_dir() else 'a device'}")
    remove_leftovers(path.parent)
    temporary = temporary_path(path)
    try:
        temporary.touch(exist_ok=False)
        mode = (path if path.exists() else temporary).stat().st_mode
        yield temporary
        temporary.chmod(mode)  # the caller may have made another file of this name, such as one only its owner can read
        flush(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.filename not in (None, str(temporary)):  # of another file, in the caller's block
            raise
        raise OSError(error.errno or errno.EIO, f"{path}: cannot be written ({reason(error)})") from error
    finally:
        temporary.unlink(missing_ok=True)
    with suppress(OSError):  # the file is in place, and some network file systems cannot flush a folder
        flush(path.parent)


def reason(error: OSError) -> str:
    """Why a file cannot be written."""
    return "the disk is full" if error.errno in _FULL else error.strerror or str(error)


def flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file in one step, see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """Rows of a CSV file with a header, each as texts by column.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: str | os.PathLike[str], columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file with a header in one step, see `replacing`.

    Args:
        path: the file to write; its folder must exist.
        columns: names of the columns in their order.
        rows: values by column; a column that a row lacks stays empty.

    Raises:
        ValueError: a row has a column that is not in `columns`.
        OSError: the file cannot be written; the old one is still there.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
