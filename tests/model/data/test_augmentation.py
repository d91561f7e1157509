"""The training transform of segmentation: image and label stay aligned, and colours change as an oracle says."""

import colorsys
import random

import pytest
import torch
import torch.nn.functional as F

from msvit.data.segmentation import Augmentation, distortion
from msvit.data.segmentation.augmentation import scaled_size

IMAGE = torch.randint(0, 256, (3, 5, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def labelled(height=40, width=60):
    """An image whose channels are its label, in blocks with a border without classes."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    label = (y // 14 * 3 + x // 17).to(torch.uint8)
    label[:3] = 255
    return label.expand(3, -1, -1).clone(), label


@pytest.mark.parametrize("seed", range(8))
def test_image_and_label_stay_aligned(seed):
    random.seed(seed)
    image, label = Augmentation((24, 32), distort=False, pad_colour=(255, 255, 255))(*labelled())
    assert (image.shape, label.shape) == ((3, 24, 32), (24, 32))
    assert (image.dtype, label.dtype) == (torch.uint8, torch.uint8)
    neighbours = F.pad(label.float(), (2, 2, 2, 2), value=-1.0).unfold(0, 5, 1).unfold(1, 5, 1)
    inside = (neighbours == label[..., None, None]).all(-1).all(-1)
    assert inside.any()
    assert torch.equal(image[:, inside], label[inside].expand(3, -1))


def test_only_the_seed_matters():
    augmentation = Augmentation((24, 24))
    results = []
    for seed in (3, 3, 4):
        random.seed(seed)
        results.append(augmentation(*labelled()))
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][0], results[2][0])


def test_unchanged_if_nothing_is_random():
    image, label = labelled()
    same = Augmentation((40, 60), scales=(1, 1), flip=0, distort=False)(image, label)
    flipped = Augmentation((40, 60), scales=(1, 1), flip=1, distort=False)(image, label)
    assert torch.equal(same[0], image)
    assert torch.equal(same[1], label)
    assert torch.equal(flipped[0], image.flip(-1))
    assert torch.equal(flipped[1], label.flip(-1))


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((512, 683), (512, 2048), [512, 683]),
        ((375, 500), (512, 2048), [512, 683]),
        ((683, 512), (256, 1024), [256 * 683 // 512 + 1, 256]),
        ((100, 1000), (512, 2048), [205, 2048]),
        ((1, 1000), (8, 32), [1, 32]),
    ],
    ids=["same", "larger", "portrait", "panorama", "line"],
)
def test_size_within_limits(size, limits, expected):
    assert scaled_size(*size, *limits) == expected


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_scale_is_relative_to_the_side(factor):
    image, label = torch.zeros(3, 50, 100, dtype=torch.uint8), torch.zeros(50, 100, dtype=torch.uint8)
    found = Augmentation((64, 64), side=20, scales=(factor, factor), distort=False, pad_colour=(1, 2, 3))(image, label)
    height, width = min(64, int(20 * factor)), min(64, int(40 * factor))
    padded = torch.ones(64, 64, dtype=torch.bool)
    padded[:height, :width] = False
    assert torch.equal(found[1], torch.where(padded, 255, 0).to(torch.uint8))
    assert torch.equal(found[0], torch.where(padded, torch.tensor([1, 2, 3])[:, None, None], 0).to(torch.uint8))


def test_crops_avoid_a_class_that_fills_them():
    """Only a crop near the corner has two classes; without the rule, one of 31 crops begins there."""
    label = torch.zeros(8, 38, dtype=torch.uint8)
    label[:, :4] = 1
    label[0] = 255
    image = label.expand(3, -1, -1)

    def varied(**options):
        crop = Augmentation((8, 8), scales=(1, 1), flip=0, distort=False, **options)
        found = [crop(image, label)[1] for _ in range(300)]
        return sum(max((each == c).sum() for c in (0, 1)) < 0.75 * 56 for each in found) / 300

    random.seed(0)
    # A crop that begins at column 0, 1 or 2 has 4, 3 or 2 columns of class 1 out of 8; 6 of 8 are 0.75 and too many.
    one = 2 / 31
    assert varied(largest_class=1.0) == pytest.approx(one, abs=0.05)
    assert varied() == pytest.approx(1 - (1 - one) ** 11, abs=0.1)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9, 1.5, 1e3])
def test_saturation_is_that_of_hsv(factor):
    def oracle(pixel):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        return colorsys.hsv_to_rgb(hue, min(1, saturation * factor), value)

    image = torch.cat([IMAGE, torch.tensor([0, 7, 255]).to(torch.uint8).view(1, 1, 3).expand(3, 5, 3)], 2)  # and grey
    expected = torch.tensor([oracle(pixel) for pixel in image.flatten(1).T.double()]).T.view_as(image) * 255
    # Half a level for rounding; a tie may go either way.
    assert (distortion.scale_saturation(image, factor) - expected).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("upper", [True, False], ids=["upper", "lower"])
@pytest.mark.parametrize("contrast_first", [True, False])
def test_limits_and_order_of_the_recipe(upper, contrast_first, monkeypatch):
    """All changes at one end of their ranges, against the definitions of mmsegmentation, pixel by pixel."""
    coins = iter([0.0, 0.0 if contrast_first else 0.9, 0.0, 0.0, 0.0])
    monkeypatch.setattr(random, "random", lambda: next(coins))
    monkeypatch.setattr(random, "uniform", lambda low, high: high if upper else low)
    sign, factor = (1, 1.5) if upper else (-1, 0.5)

    def clipped(values):
        return [min(255, max(0, value)) for value in values]

    def oracle(pixel):
        values = clipped([value + sign * 32 for value in pixel])
        if contrast_first:
            values = clipped([value * factor for value in values])
        hue, saturation, value = colorsys.rgb_to_hsv(*(value / 255 for value in values))
        values = colorsys.hsv_to_rgb((hue + sign * 18 / 180) % 1, min(1, saturation * factor), value)
        values = [value * 255 for value in values]
        return values if contrast_first else clipped([value * factor for value in values])

    expected = torch.tensor([oracle(pixel) for pixel in IMAGE.flatten(1).T.tolist()]).T.view_as(IMAGE)
    found = distortion.distort_colours(IMAGE)
    # Each of the four steps may lose a level, which later ones enlarge.
    assert (found - expected).abs().max() <= 4 * max(1, factor)
    assert (found - expected).abs().max() < (IMAGE - expected).abs().max()
    assert next(coins, None) is None


def test_colours_without_a_change(monkeypatch):
    monkeypatch.setattr(random, "random", lambda: 0.9)
    assert torch.equal(distortion.distort_colours(IMAGE), IMAGE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"crop_size": (0, 8)}, "crop_size: expected 1 pixel"),
        ({"side": 0}, "side: expected 1 pixel"),
        ({"scales": (2, 1)}, "scales: expected 0 < smallest"),
        ({"largest_class": 0}, "largest_class: expected a share"),
        ({"flip": 2}, "flip: expected a probability"),
    ],
    ids=["crop_size", "side", "scales", "largest_class", "flip"],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        Augmentation(**{"crop_size": (8, 8), **arguments})
