"""The picture of coarse and fine tokens."""

import numpy as np
import pytest
import torch

from msvit.visualize import draw_tokens, side_by_side


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)


def crossings(picture, top, left, side):
    """Black lines that a walk along the middle of a region's upper cells meets."""
    row = np.asarray(picture)[top + side // 8, left : left + side]
    black = (row == 0).all(1)
    return int((black[1:] & ~black[:-1]).sum() + black[0])


def test_fine_regions_have_smaller_outlines(image):
    mask = torch.tensor([[True, False, False], [False, False, True]])
    picture = draw_tokens(image.clamp(min=60), mask, width=192)
    assert picture.size == (192, 128)
    for row, column in np.ndindex(2, 3):
        # A coarse region has a rim left and right, a fine one two more, which touch.
        assert crossings(picture, 64 * row, 64 * column, 64) == (3 if mask[row, column] else 2)


def test_only_coarse_regions_are_dimmed(image):
    white = torch.full_like(image, 255)
    pixels = np.asarray(draw_tokens(white, torch.tensor([[True, False, True]] * 2), width=192))
    assert (pixels[10, 10] == 255).all()
    assert (pixels[10, 64 + 20] < 200).all()


def test_scale_factor(image):
    picture = draw_tokens(image.clamp(min=60), torch.ones(2, 3, dtype=torch.bool), scale_factor=4, width=192)
    assert crossings(picture, 0, 64, 64) == 5


@pytest.mark.parametrize(
    ("shape", "mask_shape", "width", "words"),
    [
        ((1, 64, 96), (2, 3), 192, r"expected \[3, H, W\]"),
        ((3, 64, 96), (6,), 192, r"\[Hc, Wc\]"),
        ((3, 64, 96), (3, 3), 192, "expected square regions"),
        ((3, 64, 96), (2, 3), 23, "width: expected at least 24"),
    ],
    ids=["channels", "mask_axes", "aspect", "width"],
)
def test_wrong_arguments(shape, mask_shape, width, words):
    with pytest.raises(ValueError, match=words):
        draw_tokens(torch.zeros(shape, dtype=torch.uint8), torch.ones(mask_shape, dtype=torch.bool), width=width)


def test_side_by_side(image):
    picture = draw_tokens(image, torch.ones(2, 3, dtype=torch.bool), width=192)
    canvas = side_by_side([picture, picture], ["left", "right"])
    assert canvas.width > 2 * picture.width
    assert canvas.height > picture.height
    caption = np.asarray(canvas)[picture.height :]
    assert (caption < 100).any(), "the captions are drawn"
    with pytest.raises(
        ValueError, match="pictures, captions: expected one or more pairs, got 1 pictures and 2 captions"
    ):
        side_by_side([picture], ["a", "b"])
