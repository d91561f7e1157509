"""Records the order in which files are flushed to the disk and get their names."""

import os
from pathlib import Path
from typing import Any

import pytest


def record_disk_events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Returns a list that grows by ("flush", path) and ("rename", new path)."""
    events: list[tuple[str, Path]] = []
    fsync = os.fsync

    def flush(descriptor: int) -> None:
        events.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def renaming(rename: Any) -> Any:
        def named(source: Any, target: Any) -> None:
            rename(source, target)
            events.append(("rename", Path(target)))

        return named

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", renaming(os.replace))
    monkeypatch.setattr(os, "rename", renaming(os.rename))
    return events
