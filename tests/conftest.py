"""Runs Triton and CUDA kernels on the CPU where there is no GPU, and poisons what kernels allocate with NaN."""

import os
from collections.abc import Iterator

# Before numpy and torch load their thread pools: on few cores, pools that wait by spinning take time from the work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import cuda_emulator
import pytest
import torch

if not torch.cuda.is_available():
    # Both are read when the backends are imported. An empty MSVIT_CUDA_EMULATOR leaves the emulator out.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if "MSVIT_CUDA_EMULATOR" not in os.environ:
        os.environ["MSVIT_CUDA_EMULATOR"] = cuda_emulator.build_or_explain()

import msvit_kernels


def pytest_report_header() -> list[str]:
    """Which builds are tested: CI looks for the sanitizers here."""
    native = msvit_kernels.explain().splitlines()[2].strip()
    emulator = os.environ.get("MSVIT_CUDA_EMULATOR") or "none"
    return [f"msvit_kernels: {msvit_kernels.__file__}", native, f"CUDA emulator: {emulator}"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fills what `torch.empty` returns with NaN (the largest integer for integers): a cell not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
