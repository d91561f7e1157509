"""Fine regions on the object: for boxes, for a perfect gate and by chance."""

import math

import pytest
import torch

from msvit.report.coverage import measure_coverage, object_regions


def test_regions_of_a_box():
    boxes = torch.tensor([[0, 0, 16, 16], [15, 0, 17, 5], [40, 16, 48, 33]])
    expected = torch.zeros(3, 3, 3, dtype=torch.bool)
    expected[0, 0, 0] = True
    expected[1, 0, :2] = True
    expected[2, 1:, 2] = True
    assert torch.equal(object_regions(boxes, (3, 3), 16), expected)


def test_coverage_of_a_perfect_gate_and_of_chance():
    boxes = torch.tensor([[3, 3, 10, 10], [15, 0, 17, 5]]).repeat(2000, 1)
    covered = object_regions(boxes, (3, 3), 16)
    perfect = measure_coverage(covered, boxes, 16)
    assert (perfect.on_object, perfect.found) == (1, 1)
    # Two fine regions where two are the object's, one where one is.
    assert perfect.chance == pytest.approx((2 * 2 / 9 + 1 * 1 / 9) / 3)
    random = torch.rand(4000, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.3
    blind = measure_coverage(random, boxes, 16)
    assert blind.on_object == pytest.approx(blind.chance, abs=0.01)
    assert blind.found == pytest.approx(0.3, abs=0.02)
    nothing = measure_coverage(torch.zeros_like(random), boxes, 16)
    assert (math.isnan(nothing.on_object), nothing.found) == (True, 0)
