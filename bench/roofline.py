"""Ceilings of the machine, measured in the same run as the times beside them."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench.machine import native_module
from bench.timing import elapsed_seconds


@dataclass(frozen=True)
class Roofline:
    """The ceilings of the machine, as measured in this run.

    Attributes:
        peak_gflop_s: GFLOP/s of multiply-adds in the dtype; each counts as two operations.
        peak_source: "fma" if a loop of multiply-adds in registers was faster, "matmul" if a large product was.
        copy_gb_s: GB/s of a large copy, bytes read plus bytes written.
    """

    peak_gflop_s: float
    peak_source: str
    copy_gb_s: float

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> "Roofline":
        """Best of several tries within `seconds`, with as many threads as torch uses."""
        peaks = {"matmul": _matmul_gflop_s(device, dtype, seconds / 3), "fma": 0.0}
        if device.type == "cpu":
            peaks["fma"] = _fma_gflop_s(dtype, seconds / 3)
        source = max(peaks, key=lambda name: peaks[name])
        return cls(peaks[source], source, _copy_gb_s(device, seconds / 3))

    def best(self, other: "Roofline") -> "Roofline":
        """The higher of two measurements: a busy moment of the machine lowers one of them."""
        peak = max(self, other, key=lambda roofline: roofline.peak_gflop_s)
        return Roofline(peak.peak_gflop_s, peak.peak_source, max(self.copy_gb_s, other.copy_gb_s))

    def floor_us(self, moved: float, flop: float) -> float:
        """Minimum microseconds for a kernel that moves `moved` bytes and does `flop` operations."""
        return max(moved / self.copy_gb_s, flop / self.peak_gflop_s) / 1e3

    def columns(self) -> dict[str, Any]:
        """Columns of a CSV row."""
        return {
            "peak_gflop_s": round(self.peak_gflop_s, 1),
            "peak_source": self.peak_source,
            "copy_gb_s": round(self.copy_gb_s, 2),
        }


def _fma_gflop_s(dtype: torch.dtype, seconds: float) -> float:
    native = native_module()
    if native is None:
        return 0.0
    # Without an instruction for bfloat16 products, a kernel has to multiply in fp32.
    best, iterations = 0.0, 2_000_000
    end = time.perf_counter() + seconds
    while best == 0 or time.perf_counter() < end:
        for bf16 in (False, True) if dtype == torch.bfloat16 else (False,):
            flop, duration = native.fma_peak(iterations, torch.get_num_threads(), bf16)
            best = max(best, flop / duration / 1e9)
    return best


def _matmul_gflop_s(device: torch.device, dtype: torch.dtype, seconds: float) -> float:
    size = 8192 if device.type == "cuda" else 1024
    # A generator of its own: torch's default one stays unusable once the capture of a graph has failed.
    generator = torch.Generator(device)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _best_seconds(lambda: torch.mm(a, b, out=out), device, seconds) / 1e9


def _copy_gb_s(device: torch.device, seconds: float) -> float:
    # Far larger than the caches of a GPU or a CPU.
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
