"""Runs Triton kernels in the interpreter where there is no GPU, and poisons what kernels allocate with NaN."""

import os
from collections.abc import Iterator

# Before numpy and torch load their thread pools: on few cores, pools that wait by spinning take time from the work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported

import msvit_kernels


def pytest_report_header() -> str:
    """Which build is tested: CI looks for the sanitizers here."""
    return f"msvit_kernels: {msvit_kernels.__file__}\n{msvit_kernels.explain().splitlines()[2].strip()}"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fills what `torch.empty` returns with NaN (the largest integer for integers): a cell not written shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
