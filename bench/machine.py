"""What the benches share: facts about the machine, interleaved timing, the roofline, CSV rows.

A time is the wall-clock time of one call on the CPU, and the time between two events of the stream on a GPU. Methods
that are compared take turns, so that a change of clock frequency or a noisy neighbour hits all of them alike.
"""

import csv
import datetime
import importlib
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
from rich.console import Console

# Backward passes are timed again and again on a graph that is kept, which compiled ones refuse by default.
torch._functorch.config.donated_buffer = False

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTILES = (20, 50, 80)


class RefusalError(Exception):
    """A bench refuses to time something that is wrong."""


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Ends the program with one line where the bench refuses or an argument is wrong."""
    try:
        yield
    except RefusalError as error:
        sys.exit(f"refused: {error}")
    except ValueError as error:
        sys.exit(f"error: {error}")


def make_console() -> Console:
    """Wide enough for the tables, whatever the terminal is: a wrapped line is better than a column cut away."""
    console = Console(highlight=False)
    console.width = max(console.width, 150)
    return console


# ---- facts


def find_device(name: str | None) -> torch.device:
    """The device to measure: `name` where given, else a GPU where torch has one, else the CPU.

    Raises:
        ValueError: `name` is no device, or not one that this machine has.
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
    """Columns of every CSV row: on what, with what, from which commit and when it was measured."""
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
    """bench/results/<device>, named after what is measured on, for CPUs with the instruction set of the kernels."""
    words = [device.type, machine_name(device), *([_isa()] if device.type == "cpu" else [])]
    slug = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower().replace("(r)", "").replace("(tm)", "")).strip("-")
    return ROOT / "bench" / "results" / slug


def commit() -> str:
    """Of the tree that is measured, with "-dirty" where tracked files differ from it; "unknown" outside of git.

    MSVIT_COMMIT wins: in a copy on another machine git is missing, or knows an older commit.
    """
    if named := os.environ.get("MSVIT_COMMIT"):
        return named
    revision = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
    if not revision:
        return "unknown"
    # Results are what benches write: they do not change what is measured.
    pathspec = [".", ":!bench/results", ":!docs"]
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no", "--", *pathspec)
    return revision + ("-dirty" if changed else "")


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


def _native() -> Any:
    try:
        return importlib.import_module("msvit_kernels._C")
    except ImportError:
        return None


def _isa() -> str:
    native = _native()
    return str(native.cpu_info()["isa_chosen"]) if native else "none"


# ---- roofline


@dataclass(frozen=True)
class Roofline:
    """What the machine can do at most, as measured in this run.

    Attributes:
        peak_gflop_s: multiply-adds in the dtype, counted as two operations each.
        peak_source: "fma" where a loop of multiply-adds in registers was faster, "matmul" where a large product was.
        copy_gb_s: read plus written by a large copy.
    """

    peak_gflop_s: float
    peak_source: str
    copy_gb_s: float

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> "Roofline":
        """Best of several tries, with as many threads as torch uses."""
        peaks = {"matmul": _matmul_gflop_s(device, dtype, seconds / 3), "fma": 0.0}
        if device.type == "cpu":
            peaks["fma"] = _fma_gflop_s(dtype, seconds / 3)
        source = max(peaks, key=lambda name: peaks[name])
        return cls(peaks[source], source, _copy_gb_s(device, seconds / 3))

    def best(self, other: "Roofline") -> "Roofline":
        """The higher of two measurements, of which one may have met a busy moment of a shared machine."""
        peak = max(self, other, key=lambda roofline: roofline.peak_gflop_s)
        return Roofline(peak.peak_gflop_s, peak.peak_source, max(self.copy_gb_s, other.copy_gb_s))

    def columns(self) -> dict[str, Any]:
        """For a CSV row."""
        return {
            "peak_gflop_s": round(self.peak_gflop_s, 1),
            "peak_source": self.peak_source,
            "copy_gb_s": round(self.copy_gb_s, 2),
        }


def _fma_gflop_s(dtype: torch.dtype, seconds: float) -> float:
    native = _native()
    if native is None:
        return 0.0
    # Without an instruction for bfloat16 products a kernel has to multiply in fp32.
    best, iterations = 0.0, 2_000_000
    end = time.perf_counter() + seconds
    while best == 0 or time.perf_counter() < end:
        for bf16 in (False, True) if dtype == torch.bfloat16 else (False,):
            flop, duration = native.fma_peak(iterations, torch.get_num_threads(), bf16)
            best = max(best, flop / duration / 1e9)
    return best


def _matmul_gflop_s(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    size = 8192 if device.type == "cuda" else 1024
    # A generator of its own: torch's default one stays unusable where the capture of a graph has failed.
    generator = torch.Generator(device)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _best_seconds(lambda: torch.mm(a, b, out=out), device, seconds) / 1e9


def _copy_gb_s(device: torch.device, seconds: float) -> float:
    # Far above the caches of both.
    source = torch.zeros(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)
    if device.type == "cuda":  # a GPU may move zeros faster
        source.random_(generator=torch.Generator(device))
    target = torch.ones_like(source)
    return 2 * source.numel() / _best_seconds(lambda: target.copy_(source), device, seconds) / 1e9


def _best_seconds(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    call()
    samples = [elapsed_seconds(call, device)]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        samples.append(elapsed_seconds(call, device))
    return min(samples)


# ---- timing


def elapsed_seconds(call: Callable[[], Any], device: torch.device, repeats: int = 1) -> float:
    """Mean time of `repeats` calls in a row."""
    if device.type == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / repeats


def interleave(
    methods: Mapping[str, Callable[[], Any]],
    device: torch.device,
    seconds: float,
    sample_seconds: float = 2e-3,
    few: Sequence[str] = (),
) -> dict[str, list[float]]:
    """Times the methods in turn until `seconds` have passed, at least three rounds.

    Args:
        methods: by name.
        device: where they run.
        seconds: for all of them together.
        sample_seconds: a method that is faster is called several times for each sample.
        few: methods that take part in the first three rounds only, slow ones whose time nobody compares closely.

    Returns:
        Seconds of one call, one number for each round that a method took part in, by name.
    """
    repeats = {}
    for name, call in methods.items():
        call()
        elapsed = elapsed_seconds(call, device)
        repeats[name] = max(1, min(1000, round(sample_seconds / max(elapsed, 1e-9))))
    samples: dict[str, list[float]] = {name: [] for name in methods}
    end = time.perf_counter() + seconds
    rounds = 0
    while time.perf_counter() < end or rounds < 3:
        for name, call in methods.items():
            if rounds < 3 or name not in few:
                samples[name].append(elapsed_seconds(call, device, repeats[name]))
        rounds += 1
    return samples


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """{"p20": ..., "p50": ..., "p80": ...}, linearly interpolated."""
    values = torch.quantile(torch.tensor(samples, dtype=torch.float64), torch.tensor(QUANTILES).double() / 100)
    return {f"p{q}": float(value) for q, value in zip(QUANTILES, values, strict=True)}


# ---- CSV


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One line for each row under a header; a value that a row lacks stays empty.

    Whoever ends the run finds the old file or the new one, never a part of it.
    """
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    unfinished.replace(path)


def _plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
