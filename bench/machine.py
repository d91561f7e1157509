"""The machine that is measured: its device, its name, versions, the commit, and the folder of its results."""

import datetime
import importlib
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from bench import RESULTS, ROOT


def find_device(name: str | None) -> torch.device:
    """The device `name`; if it is None, a GPU, or the CPU if torch finds no GPU.

    Raises:
        ValueError: `name` is not a device of this machine.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device: expected cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device: got {name!r}, but torch finds no GPU on this machine")
    return device


def facts(device: torch.device) -> dict[str, Any]:
    """Columns of every CSV row: machine, versions, commit and date (UTC)."""
    return {
        "machine": machine_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": _isa(),
        "torch": torch.__version__,
        "timm": _version("timm"),
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def machine_name(device: torch.device) -> str:
    """Model of the GPU or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (match := re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)):
        return match[1].strip()
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


def results_dir(device: torch.device) -> Path:
    """bench/results/<device>; the name of a CPU's folder includes the kernels' instruction set."""
    words = [device.type, machine_name(device), *([_isa()] if device.type == "cpu" else [])]
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower().replace("(r)", "").replace("(tm)", "")).strip("-")
    return RESULTS / slug


def commit() -> str:
    """Commit of the measured tree, with "-dirty" if tracked files differ from it; "unknown" outside git.

    MSVIT_COMMIT takes precedence: a copy on another machine has no .git, or an older one.
    """
    if named := os.environ.get("MSVIT_COMMIT"):
        return named
    revision = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if not revision:
        return "unknown"
    # Results that benches write do not count as changes of the measured code.
    pathspec = [".", ":!bench/results", ":!docs"]
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", *pathspec)
    return revision + ("-dirty" if changed else "")


def native_module() -> Any:
    """The compiled CPU module, or None if it cannot be imported."""
    try:
        return importlib.import_module("msvit_kernels._C")
    except ImportError:
        return None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _version(package: str) -> str:
    try:
        return str(importlib.import_module(package).__version__)
    except ImportError:
        return "none"


def _isa() -> str:
    native = native_module()
    return str(native.cpu_info()["isa_chosen"]) if native else "none"
