"""Digits on photographs are reproducible, cleanly split, balanced, and inside their boxes."""

import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from msvit.data import DigitsOnPhotographs, digits, sample_photographs
from msvit.data.ink import digit_scans
from msvit.extras import MissingExtraError


def make(split="train", size=300, seed=0, image_size=96, **arguments):
    return DigitsOnPhotographs(split, size, seed, image_size, **arguments)


def test_items_are_those_of_the_arrays():
    data = make(size=25)
    assert len(data) == 25
    assert (data.images.shape, data.images.dtype) == ((25, 3, 96, 96), torch.uint8)
    image, label = data[7]
    assert torch.equal(image, data.images[7])
    assert (label, type(label)) == (int(data.labels[7]), int)
    images, labels = next(iter(DataLoader(data, batch_size=10)))
    assert torch.equal(images, data.images[:10])
    assert torch.equal(labels, data.labels[:10])


def test_same_seed_same_images():
    first, second, other = make(), make(), make(seed=1)
    for name in ("images", "labels", "boxes"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


@pytest.mark.parametrize("split", digits.SPLITS)
def test_labels_are_balanced(split):
    counts = make(split, size=204).labels.bincount(minlength=10)
    assert counts.sum() == 204
    assert counts.max() - counts.min() <= 1


def test_no_scan_and_no_photograph_in_both_splits():
    scans = {split: {scan.tobytes() for scan in digit_scans(split)[0]} for split in digits.SPLITS}
    assert not scans["train"] & scans["test"]
    assert len(scans["train"]) + len(scans["test"]) == 1797
    for split in digits.SPLITS:
        assert np.bincount(digit_scans(split)[1]).min() > 40, "every digit is in both"
    names = {split: set(names) for split, names in digits.PHOTOGRAPHS.items()}
    assert not names["train"] & names["test"]
    assert names["train"] | names["test"] <= set(sample_photographs()), "all of them are on disk"
    assert {"motorcycle_left", "motorcycle_right"} <= names["train"], "one scene"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("image_size", [32, 96, 130])
def test_only_the_box_differs_from_the_photograph(seed, image_size):
    data = make(seed=seed, image_size=image_size, size=200)
    crops = digits.photograph_crops("train", 200, seed, image_size)
    changed = (data.images != crops).any(1)
    left, top, right, bottom = (data.boxes[:, i, None, None] for i in range(4))
    x, y = torch.arange(image_size), torch.arange(image_size)[:, None]
    inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    assert data.boxes.min() >= 0
    assert data.boxes.max() <= image_size
    assert not (changed & ~inside).any()
    assert (changed & inside).flatten(1).any(1).all()
    # The ink is far from what it covers: a digit that cannot be seen cannot be read.
    difference = (data.images.float() - crops).abs().mean(1) * inside
    assert difference.flatten(1).max(1).values.min() > 50


def test_boxes_are_small_and_everywhere():
    data = make(size=2000, digit_size=(9.6, 13.7))
    width, height = (data.boxes[:, 2:] - data.boxes[:, :2]).unbind(1)
    assert width.min() >= 3
    assert height.min() >= 9
    assert max(width.max(), height.max()) <= 18
    regions = ((data.boxes[:, 2:] - 1) // 16 - data.boxes[:, :2] // 16 + 1).prod(1)
    assert (regions <= 4).float().mean() > 0.98, "one to four regions of 16 pixels"
    centres = (data.boxes[:, :2] + data.boxes[:, 2:]) // 2 // 32
    counts = (centres[:, 0] * 3 + centres[:, 1]).bincount(minlength=9)
    assert counts.min() > 100, "in every ninth of the image"


def test_ink_is_brighter_than_any_photograph():
    data, crops = make(size=500), digits.photograph_crops("train", 500, 0, 96)
    assert (data.images.flatten(1).max(1).values > 200).all()
    assert crops.max() < 180
    assert (crops.flatten(1).float().std(1) > 2).float().mean() > 0.9, "faded, but still there"


def test_digit_size_is_in_pixels():
    small, large = make(digit_size=(8, 8)), make(digit_size=(24, 24))
    heights = [(data.boxes[:, 3] - data.boxes[:, 1]).float().mean() for data in (small, large)]
    assert heights[1] / heights[0] == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "valid"}, "split: expected one of train, test, got 'valid'"),
        ({"size": 0}, "size: expected 1 image or more, got 0"),
        ({"image_size": 15}, "image_size: expected 16 pixels or more"),
        ({"digit_size": (1, 10)}, "digit_size: expected 2 <="),
        ({"digit_size": (12, 10)}, "digit_size"),
        ({"digit_size": (12, 50)}, "largest <= 48"),
    ],
    ids=["split", "size", "image_size", "tiny", "order", "large"],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)


def test_missing_photographs_are_named(monkeypatch):
    monkeypatch.setattr(digits, "sample_photographs", dict)
    with pytest.raises(ValueError, match=r"expected coffee, coins, .* in scikit-image's data folder, got none"):
        make("test")


def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r'sklearn is not installed; run: pip install "msvit\[train\]"'):
        make()
