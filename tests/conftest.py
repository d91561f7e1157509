"""Runs Triton and CUDA kernels on the CPU if there is no GPU, and fills the memory that kernels allocate with NaN."""

import os
from collections.abc import Callable, Iterator

# Before numpy and torch load their thread pools: on few cores, pools that wait by spinning take time from the work.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Workers of pytest-xdist share the cores: with two threads in each of two, two cores take an eighth longer. Tests of
# what depends on threads set their number.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))
# Or torch warns of cuBLAS in every test with poisoned memory.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch

from tests import cuda_emulator

if not torch.cuda.is_available():
    # Before the backends are imported. An empty MSVIT_CUDA_EMULATOR leaves the emulator out.
    os.environ.setdefault("TRITON_INTERPRET", "1")
    cuda_emulator.install()

import msvit_kernels


def pytest_report_header() -> list[str]:
    """Names the tested builds; CI looks for the sanitizers here."""
    native = msvit_kernels.explain().splitlines()[2].strip()
    emulator = os.environ[cuda_emulator.PATH] if cuda_emulator.is_installed() else "none"
    return [f"msvit_kernels: {msvit_kernels.__file__}", native, f"CUDA emulator: {emulator}"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Workers of `-n auto`; each has a context on the GPU if there is one."""
    return min(os.cpu_count() or 1, 4)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out cases that take too many seconds: see the mark `fewer_cases` in pyproject.toml."""
    left_out = [item for item in items if not _is_kept(item)]
    if left_out:
        items[:] = [item for item in items if _is_kept(item)]
        config.hook.pytest_deselected(items=left_out)


def _is_kept(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("fewer_cases")
    if mark is None or not isinstance(item, pytest.Function):
        return True
    parameters = item.callspec.params
    # In this order, so that an error in the mark shows without Triton.
    return mark.kwargs["keep"](**parameters) or parameters["target"][0] != "triton"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """With pytest-xdist, why a test failed as soon as it did: a run that is stopped never comes to its tracebacks."""
    if report.failed and hasattr(report, "node"):
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash else str(report.longrepr)
        print("".join(f"\n    {line}" for line in why.splitlines()[:4]), flush=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_logfinish() -> Iterator[None]:
    """Ends a worker of pytest-xdist that lost the device, because all of its later tests would fail."""
    yield
    if "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized() and _device_is_lost():
        os._exit(1)  # another worker takes its place, and this test is reported as the one that crashed


def _device_is_lost() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fills the results of `torch.empty` with NaN (integers with the largest value), which exposes unwritten cells."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, which is undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
