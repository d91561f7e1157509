"""The picture of a segmentation, its legend, and the colours of classes."""

import numpy as np
import pytest
import torch
from PIL import ImageFont

from msvit.palette import class_colours
from msvit.segmentation_picture import draw_legend, draw_segmentation, legend_of
from msvit.visualize import shortened


def test_classes_have_their_colours_and_lines_between_them():
    labels = torch.zeros(40, 60, dtype=torch.int64)
    labels[:, 30:] = 7
    grey = torch.full((3, 40, 60), 128, dtype=torch.uint8)
    pixels = np.asarray(draw_segmentation(grey, labels, 9, (120, 80)))
    assert pixels.shape == (80, 120, 3)
    colours = class_colours(9).astype(int)
    for column, label in ((10, 0), (100, 7)):
        assert np.abs(pixels[40, column] - colours).sum(1).argmin() == label
    assert pixels[40, 59].sum() < pixels[40, 10].sum() / 2


def test_a_legend_is_sorted_and_counts_the_rest_together():
    labels = torch.tensor([[2] * 5 + [0] * 3 + [3, 1]])
    entries = legend_of(labels, ["a", "b", "c", "d", "e"], limit=2)
    assert [(entry.name, entry.share) for entry in entries] == [
        ("c", pytest.approx(0.5)),
        ("a", pytest.approx(0.3)),
        ("other (2 classes)", pytest.approx(0.2)),
    ]
    assert entries[0].colour == tuple(class_colours(5)[2])
    assert [entry.name for entry in legend_of(labels, "abcde")] == ["c", "a", "b", "d"]


@pytest.mark.parametrize("width", [120, 500, 1376])
def test_a_long_name_stays_in_its_column(width):
    entries = legend_of(torch.arange(3)[None], ["name " * 30] * 3)
    pixels = np.asarray(draw_legend(entries, width))
    assert pixels.shape[1] == width
    assert (pixels[:, -2:] == 255).all()


def test_shortened_keeps_both_ends():
    font = ImageFont.load_default(size=15)
    assert shortened("coffee", font, 200) == "coffee"
    text = shortened("a long name of a photograph: 511 of 1024 tokens", font, 200)
    assert text.startswith("a long")
    assert text.endswith("1024 tokens")
    assert font.getlength(text) <= 200


def test_colours_are_distinct_and_stay_when_classes_are_added():
    colours = class_colours(150)
    assert colours.dtype == np.uint8
    assert len(np.unique(colours, axis=0)) == 150
    assert np.array_equal(class_colours(12), colours[:12])
    nearest = [np.linalg.norm(colours[:n, None].astype(int) - colours[None, :n], axis=2) for n in (10, 150)]
    assert all(distances[distances > 0].min() > least for distances, least in zip(nearest, (60, 20), strict=True))
    with pytest.raises(ValueError, match=r"num_classes: expected at most \d+, got 100000"):
        class_colours(100_000)
