"""The ceilings that are measured with the times."""

import pytest
import torch

from bench.roofline import Roofline
from tests.bench.helpers import CPU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_roofline(dtype):
    roofline = Roofline.measure(CPU, dtype, seconds=0.03)
    assert roofline.peak_gflop_s > 0.1
    assert roofline.copy_gb_s > 0.01
    assert set(roofline.columns()) == {"peak_gflop_s", "peak_source", "copy_gb_s"}


def test_roofline_takes_the_better_of_two():
    slow, fast = Roofline(100, "matmul", 30), Roofline(200, "fma", 20)
    assert slow.best(fast) == fast.best(slow) == Roofline(200, "fma", 30)


def test_fma_peak_counts_operations_of_all_threads():
    native = pytest.importorskip("msvit_kernels._C")
    flop, seconds = native.fma_peak(1000, 2, False)
    assert flop == 2 * native.fma_peak(1000, 1, False)[0] > 0
    assert seconds > 0
