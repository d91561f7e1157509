"""Digits on photographs with a class for every pixel, made in seconds without a download.

The scans, the photographs and their division into splits are those of `msvit.data.DigitsOnPhotographs`. The digits are
larger, because a model with patches of 8 pixels should see their shape, and an image has one to three of them, so that
it cannot be described by one label. A digit's pixels are those within one cell of the 8 x 8 scan from its ink: the
filled outline of the digit, some patches wide. The strokes alone would be narrower than a patch.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from msvit.data.digits import SPLITS, check_arguments, photograph_crops
from msvit.data.ink import INK, MAX_TURN, balanced, blend, digit_scans, enlarge, extent

CLASSES = (*"0123456789", "photograph")
_PHOTOGRAPH = len(CLASSES) - 1

_MOST_DIGITS = 3
_PLACES_TRIED = 20
# Bounds the memory of enlarged digits.
_AT_ONCE = 256
# Values of a scan from which a cell counts as ink for the outline; fainter ones surround the strokes.
_MIN_INK = 0.25


class DigitSegmentation(Dataset[tuple[Tensor, Tensor]]):
    """Crops of photographs, each with one to three handwritten digits that do not overlap, and the class of each pixel.

    Args:
        split: "train" or "test", which share no digit scan and no photograph, whatever the seeds.
        size: number of images.
        seed: seed of the images, which are the same on every machine with the same library versions.
        image_size: height and width in pixels.
        digit_size: smallest and largest width of the square that a scan is enlarged to, in pixels; 1/4 and 3/8
            of `image_size` by default. The digit fills most of the square.

    Attributes:
        images: uint8 [size, 3, image_size, image_size].
        labels: uint8 [size, image_size, image_size], 0 to 9, or 10 for the photograph.
        class_names: names of the eleven classes.

    Raises:
        ValueError: the split is unknown, a size is too small, the digits do not fit, or the installed scikit-image has
            no photograph of the split.
        MissingExtraError: scikit-learn is not installed.

    A digit for which 20 random places overlap others is left out, but never the first of an image.
    """

    class_names = CLASSES

    def __init__(
        self, split: str, size: int, seed: int, image_size: int, digit_size: tuple[float, float] | None = None
    ) -> None:
        low, high = digit_size or (image_size / 4, image_size * 3 / 8)
        check_arguments(split, size, image_size, (low, high))
        self.images = photograph_crops(split, size, seed, image_size)
        self.labels = torch.full((size, image_size, image_size), _PHOTOGRAPH, dtype=torch.uint8)
        rng = np.random.default_rng([seed, SPLITS.index(split), 2])
        owners = np.repeat(np.arange(size), rng.permutation(np.arange(size) % _MOST_DIGITS) + 1)
        scans, digits = digit_scans(split)
        chosen = balanced(digits, len(owners), rng)
        sides, turns = (rng.uniform(*limits, len(owners)) for limits in ((low, high), (-MAX_TURN, MAX_TURN)))
        levels = rng.uniform(*INK, len(owners))
        shapes = _shapes(scans[chosen], sides, turns)
        pixels, labels = self.images.numpy(), self.labels.numpy()
        for owner, digit, level, (ink, outline) in zip(owners, digits[chosen], levels, shapes, strict=True):
            place = _find_place(labels[owner], outline.shape, rng)
            if place is not None:
                blend(pixels[owner, :, *place], ink, level)
                labels[owner, *place][outline] = digit

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def _shapes(scans: np.ndarray, sides: np.ndarray, turns: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The opacity and the outline of each digit, fp32 and bool [h, w], both cut to where there is either."""
    sides = sides * (scans.shape[1] + 2) / scans.shape[1]
    scans = np.pad(scans, ((0, 0), (1, 1), (1, 1)))  # a cell of margin for the outline
    cells = F.max_pool2d(torch.from_numpy(scans >= _MIN_INK).float(), 3, 1, 1).numpy()
    both = np.stack([scans, cells], axis=1)
    for start in range(0, len(scans), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        shapes = enlarge(both[part], sides[part], turns[part])
        shapes[:, 1] = shapes[:, 1] >= 0.5
        covered = shapes.amax(1)
        columns, rows = extent(covered, 0), extent(covered, 1)
        for (ink, outline), *limits in zip(shapes.numpy(), *columns, *rows, strict=True):
            left, right, top, bottom = limits
            yield ink[top:bottom, left:right], outline[top:bottom, left:right] > 0


def _find_place(label: np.ndarray, size: tuple[int, ...], rng: np.random.Generator) -> tuple[slice, slice] | None:
    """A random rectangle of the photograph without a digit, or None if none of the tried ones is."""
    for _ in range(_PLACES_TRIED):
        top, left = (int(rng.integers(have - want + 1)) for have, want in zip(label.shape, size, strict=True))
        place = slice(top, top + size[0]), slice(left, left + size[1])
        if (label[place] == _PHOTOGRAPH).all():
            return place
    return None
