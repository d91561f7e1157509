"""Peak memory of a call."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def peak_megabytes(call: Callable[[], Any], device: torch.device) -> float | None:
    """Peak megabytes (2**20 bytes) of a call beyond the memory held before it; None if the system has no such figure.

    On a CPU the figure is the resident size of the process.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory of earlier calls would hide the peak of this one
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current size
        before = _status("VmRSS")
        call()
        return (_status("VmHWM") - before) / 2**10
    except (OSError, AttributeError, KeyError):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int({line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}[name])
