"""Zooms, shifts, and the radial pattern that the learned gate is compared with."""

import pytest
import torch

from msvit.report.images import load_test_images
from msvit.report.shifts import Transform, apply, compare_gates, radial_mask, random_transforms


def test_first_transform_leaves_the_images_as_they_are():
    images = torch.randint(0, 256, (3, 3, 24, 32), dtype=torch.uint8)
    first, *others = random_transforms(20)
    assert torch.equal(apply(images, first), images)
    assert others == random_transforms(20)[1:], "the same ones every time"
    assert all(0.7 <= one.zoom <= 1.4 and max(abs(one.shift_x), abs(one.shift_y)) <= 0.3 for one in others)
    assert min(one.zoom for one in others) < 0.9
    assert max(one.zoom for one in others) > 1.2


def test_shift_moves_right_and_down():
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    moved = apply(images, Transform(1.0, 0.25, 0.125))
    assert torch.equal(moved[:, :, 2:, 4:], images[:, :, :-2, :-4])
    assert torch.equal(moved[:, :, 2:, :4], images[:, :, :-2, :1].expand(-1, -1, -1, 4)), "the border goes on"


def test_zoom_enlarges_around_the_centre():
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[:, :, 12:20, 12:20] = 200
    assert (apply(images, Transform(2.0, 0.0, 0.0)) > 100).sum() == 3 * 16 * 16
    assert (apply(images, Transform(0.5, 0.0, 0.0)) > 100).sum() == 3 * 4 * 4


def test_radial_mask_fills_from_the_centre():
    assert radial_mask((3, 3), 1).tolist() == [[False] * 3, [False, True, False], [False] * 3]
    cross = torch.tensor([[False, True, False], [True, True, True], [False, True, False]])
    assert torch.equal(radial_mask((3, 3), 5), cross)
    assert radial_mask((4, 6), 0).sum() == 0
    assert radial_mask((4, 6), 24).all()


def test_both_gates_have_the_same_tokens_on_unchanged_images(runs):
    run = runs["learned-0"]
    model = run.model()
    pairs = compare_gates(model, model, load_test_images(run), run.config.batch_size, 2)
    assert len(pairs) == 3
    # Equal to within the rounding to whole regions, of which each wins three tokens.
    assert abs(pairs[0].learned.tokens_per_image - pairs[0].radial.tokens_per_image) <= 1.5
    assert len({pair.radial.tokens_per_image for pair in pairs}) == 1
    assert pairs[0].learned.top1 == pytest.approx(run.metrics[-1]["top1"])
