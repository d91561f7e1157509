"""Workloads of attention: lengths, minimum work, buffers."""

import pytest
import torch

from bench.attention.workloads import HEADLINE, Buffers, Workload, gpu_workloads, rotations, uniform
from bench.roofline import Roofline
from tests.bench.helpers import CPU, SMALL


def test_lengths_that_are_measured():
    by_name = {(each.name, each.head_dim): each for each in gpu_workloads()}
    assert {head_dim for _, head_dim in by_name} == {32, 64, 128}
    assert all(each.num_heads * each.head_dim == 384 for each in by_name.values())
    headline = by_name[HEADLINE, 64]
    assert gpu_workloads()[0] is not headline
    assert gpu_workloads()[0] == headline
    assert (len(headline.lengths), min(headline.lengths), headline.longest) == (256, 64, 196)
    assert 31_000 < headline.total < 36_000
    assert by_name["1 x 2048 and 255 x 64..196", 64].lengths[0] == 2048


def test_operations_and_bytes():
    work = Workload("x", (2, 3), 16, 32)
    assert work.flop(backward=False) == 4 * (4 + 9) * 2 * 16
    assert work.flop(backward=True) == 2.5 * work.flop(backward=False)
    assert work.bytes(False, 2) == 5 * 32 * 2 * 4 + 2 * 5 * 4
    assert work.bytes(True, 2) == 5 * 32 * 2 * 8 + 2 * 5 * 4
    assert work.bytes(True, 2, weighted=True) == work.bytes(True, 2) + 2 * 5 * 4


@pytest.mark.parametrize(
    ("lengths", "backward", "floor_us"),
    [((130,) * 256, False, 24), ((130,) * 256, True, 48), ((1024,) * 32, False, 65.2)],
    ids=["headline_by_memory", "headline_backward", "long_by_arithmetic"],
)
def test_floor(lengths, backward, floor_us):
    work, ceilings = Workload("x", lengths), Roofline(790e3, "matmul", 4300)
    assert ceilings.floor_us(work.bytes(backward, 2), work.flop(backward)) == pytest.approx(floor_us, rel=0.02)


@pytest.mark.parametrize(("size", "sets"), [(1e9, 2), (30e6, 5), (1e3, 128)])
def test_buffers_rotate_until_the_cache_is_cold(size, sets):
    assert rotations(size, 50e6) == sets


def test_lengths_are_the_same_every_time():
    assert uniform(8, 64, 196) == uniform(8, 64, 196)
    assert uniform(1, 7, 7) == (7,)


def test_padding_and_back():
    x = Buffers(SMALL, torch.float32, CPU)
    assert torch.equal(x.unpad(x.pad(x.dout).transpose(1, 2)), x.dout)
    assert x.document.tolist() == [0] * 12 + [1] * 5 + [2] * 12
    assert not torch.equal(Buffers(SMALL, torch.float32, CPU, seed=1).q, x.q)
