"""Digits with masks: reproducible, from the same scans and photographs, and labels that cover the ink."""

import pytest
import torch

from msvit.data import digits
from msvit.data.segmentation import DigitSegmentation
from msvit.data.segmentation import digits as segmentation_digits

PHOTOGRAPH = 10


def make(split="train", size=60, seed=0, image_size=48, **arguments):
    return DigitSegmentation(split, size, seed, image_size, **arguments)


def test_items_are_those_of_the_arrays():
    data = make(size=7)
    assert len(data) == 7
    assert (data.images.shape, data.images.dtype) == ((7, 3, 48, 48), torch.uint8)
    assert (data.labels.shape, data.labels.dtype) == ((7, 48, 48), torch.uint8)
    assert data.class_names == (*"0123456789", "photograph")
    image, label = data[5]
    assert torch.equal(image, data.images[5])
    assert torch.equal(label, data.labels[5])


def test_same_seed_same_images():
    first, second, other = make(), make(), make(seed=1)
    for name in ("images", "labels"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


@pytest.mark.parametrize("image_size", [16, 48, 130])
@pytest.mark.parametrize("split", digits.SPLITS)
def test_ink_lies_in_labels_and_is_bright(split, image_size):
    data, crops = make(split, image_size=image_size), digits.photograph_crops(split, 60, 0, image_size)
    on_digit = data.labels != PHOTOGRAPH
    change = (data.images.float() - crops).abs().amax(1)
    assert ((change > 0) & on_digit).flatten(1).any(1).all(), "each image has a digit"
    # A digit's faintest ink may lie outside of its outline.
    assert change[~on_digit].max() < 0.25 * 255
    assert (change * on_digit).flatten(1).amax(1).min() > 50


def test_outlines_are_filled_and_wide():
    """A digit of 24 pixels has cells of 3; with one around its ink, an outline is at least three cells wide."""
    data = make(size=200, image_size=64, digit_size=(24, 24))
    for digit in range(10):
        areas = (data.labels == digit).flatten(1).sum(1)
        assert areas[areas > 0].min() > 0.1 * 24**2
        assert areas.max() < 3 * 1.25**2 * 24**2
    shares = data.labels.flatten().bincount(minlength=11) / data.labels.numel()
    assert 0.4 < shares[PHOTOGRAPH] < 0.95
    assert shares[:10].max() < 2 * shares[:10].min()


def test_one_to_three_digits():
    found = torch.tensor([len(label.unique()) - 1 for label in make(size=300).labels])
    counts = found.bincount(minlength=4)
    assert len(counts) == 4
    assert counts[0] == 0
    assert counts[1:].min() > 20


def test_no_ink_on_ink(monkeypatch):
    def count(patch, alpha, level):
        patch[:, alpha > 0.25] += 1

    monkeypatch.setattr(segmentation_digits, "blend", count)
    images = make(size=80).images
    assert (images - digits.photograph_crops("train", 80, 0, 48)).max() == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "valid"}, "split: expected one of train, test, got 'valid'"),
        ({"size": 0}, "size: expected 1 image or more, got 0"),
        ({"digit_size": (12, 25)}, "largest <= 24"),
    ],
    ids=["split", "size", "large"],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)
