"""Temporary names that carry their owner, and the removal of what processes that were killed left behind.

    .NAME.MACHINE-PROCESS-START.NUMBER.SUFFIX

MACHINE is a digest of host name, boot and process namespace, START the clock tick at which the process started: a
process number alone is used again, in a container after every restart.
"""

import hashlib
import os
import platform
import re
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.(?P<machine>[0-9a-f]{8})-(?P<process>\d{1,9})-(?P<start>\d+)\.[0-9a-f]{8}(\..*)?", re.S)
# Whether a process of another machine still runs cannot be known; none writes for so long without a change.
_SECONDS_OF_OTHERS = 24 * 3600


def temporary_path(path: Path) -> Path:
    """A new hidden name beside `path`, with the same suffix, for a file or folder that will take its place."""
    process = os.getpid()
    state = _state(process)
    owner = f"{_machine()}-{process}-{state[19] if state else 0}"
    return path.with_name(f".{path.stem}.{owner}.{uuid.uuid4().hex[:8]}{path.suffix}")


def remove_leftovers(folder: Path) -> None:
    """Removes files and folders with a name of `temporary_path` whose process has ended.

    Args:
        folder: folder to look into, without its subfolders. Nothing happens if it does not exist. A file that cannot
            be removed stays.
    """
    for path in folder.glob(".*"):
        owner = _TEMPORARY.fullmatch(path.name)
        if owner is None or not _is_left(path, owner):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def _is_left(path: Path, owner: re.Match[str]) -> bool:
    if owner["machine"] == _machine():
        return not _runs(int(owner["process"]), owner["start"])
    try:
        return time.time() - path.stat().st_mtime > _SECONDS_OF_OTHERS
    except OSError:  # its owner has just removed it
        return False


def _runs(process: int, start: str) -> bool:
    """Whether a process of this machine runs, or may run."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user, who may hide its start
        return True
    state = _state(process)
    # A process that has ended is a zombie, Z, until its parent asks how it ended.
    return not state or (state[0] not in "ZX" and state[19] == start)


def _state(process: int) -> list[str]:
    """The fields of /proc/PROCESS/stat after the name; none on systems without it."""
    try:
        return Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _machine() -> str:
    namespace = boot = ""
    with suppress(OSError):  # of systems other than Linux
        # Hosts with one name, such as copies of an image, differ in it. After a restart, leftovers wait a day.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 # Path would resolve "pid:[...]" as a path
    return hashlib.blake2b(f"{platform.node()} {boot} {namespace}".encode(), digest_size=4).hexdigest()
