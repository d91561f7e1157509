"""A data set of handwritten digits on photographs, made in seconds without a download.

The digits are scikit-learn's 8 x 8 scans. The photographs come from the scikit-image wheel and are turned grey, with
reduced contrast. A digit covers one to four regions of an image; the other regions do not affect the label. Since the
place of the digit is known, the report can measure whether a gate selects it.
"""

import functools

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from msvit.data.decoding import decode_image
from msvit.data.ink import INK, MAX_TURN, balanced, blend, digit_scans, enlarge, extent
from msvit.data.samples import sample_photographs

# Both halves of the stereo pair show one scene and stay in one split. The page of text is left out because its letters
# resemble digits; gravel and grass, because people do not find digits on them either.
PHOTOGRAPHS = {
    "train": (
        "astronaut",
        "rocket",
        "chelsea",
        "motorcycle_left",
        "motorcycle_right",
        "camera",
        "hubble_deep_field",
        "brick",
        "ihc",
    ),
    "test": ("coffee", "coins", "moon", "retina"),
}
SPLITS = tuple(PHOTOGRAPHS)

# Shorter side of the resized photographs that crops are cut from, in image widths.
_ZOOMS = (2.0, 3.0, 4.0)
# A small model trained from scratch can read the digits because crops keep only this share of their contrast, around
# the same dark grey, in 1/255, and ink is brighter than that.
_FADED, _GREY = 0.3, 90


class DigitsOnPhotographs(Dataset[tuple[Tensor, int]]):
    """Crops of photographs, each with one handwritten digit; the label is the digit.

    Args:
        split: "train" or "test", which share no digit scan and no photograph, whatever the seeds.
        size: number of images; labels are balanced to within one.
        seed: seed of the images, which are the same on every machine with the same library versions.
        image_size: height and width in pixels.
        digit_size: smallest and largest width of the square that a scan is enlarged to, in pixels; 1/8 and 7/40
            of `image_size` by default. The digit fills most of the square.

    Attributes:
        images: uint8 [size, 3, image_size, image_size].
        labels: int64 [size], 0 to 9.
        boxes: int64 [size, 4], left, top, right, bottom of the digit in pixels, right and bottom exclusive.

    Raises:
        ValueError: the split is unknown, a size is too small, the digits do not fit, or the installed scikit-image has
            no photograph of the split.
        MissingExtraError: scikit-learn is not installed.
    """

    def __init__(
        self, split: str, size: int, seed: int, image_size: int, digit_size: tuple[float, float] | None = None
    ) -> None:
        low, high = digit_size or (image_size / 8, image_size * 7 / 40)
        check_arguments(split, size, image_size, (low, high))
        self.images = photograph_crops(split, size, seed, image_size)
        rng = np.random.default_rng([seed, SPLITS.index(split), 1])
        scans, labels = digit_scans(split)
        chosen = balanced(labels, size, rng)
        self.labels = torch.from_numpy(labels[chosen])
        sides, turns = rng.uniform(low, high, size), rng.uniform(-MAX_TURN, MAX_TURN, size)
        ink = enlarge(scans[chosen, None], sides, turns)[:, 0]
        self.boxes = _place(ink, image_size, rng)
        _paint(self.images, ink, self.boxes, rng)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.images[index], int(self.labels[index])


def check_arguments(split: str, size: int, image_size: int, digit_size: tuple[float, float]) -> None:
    """Raises ValueError unless images of these sizes can be made."""
    low, high = digit_size
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if size < 1:
        raise ValueError(f"size: expected 1 image or more, got {size}")
    if image_size < 16:
        raise ValueError(f"image_size: expected 16 pixels or more, got {image_size}")
    if not 2 <= low <= high <= image_size / 2:
        raise ValueError(f"digit_size: expected 2 <= smallest <= largest <= {image_size / 2}, got {(low, high)}")


def photograph_crops(split: str, size: int, seed: int, image_size: int) -> Tensor:
    """Makes the images, before digits are painted on them.

    Args:
        split: "train" or "test".
        size: number of images.
        seed: seed of the crops.
        image_size: height and width in pixels.

    Returns:
        uint8 [size, 3, image_size, image_size].

    Raises:
        ValueError: the installed scikit-image has no photograph of the split.
    """
    levels = _pyramids(split, image_size)
    rng = np.random.default_rng([seed, SPLITS.index(split), 0])
    which = rng.integers(len(levels), size=size)
    y, x, mirrored = rng.random(size), rng.random(size), rng.random(size) < 0.5
    crops = np.empty((size, 3, image_size, image_size), dtype=np.uint8)
    for i, level in enumerate(which):
        photograph = levels[level]
        top = int(y[i] * (photograph.shape[1] - image_size + 1))
        left = int(x[i] * (photograph.shape[2] - image_size + 1))
        crop = photograph[:, top : top + image_size, left : left + image_size]
        faded = (_GREY + _FADED * (np.arange(256) - crop.mean())).round().astype(np.uint8)  # by pixel value
        crops[i] = faded[crop[:, :, ::-1] if mirrored[i] else crop]
    return torch.from_numpy(crops)


@functools.lru_cache(maxsize=2)
def _pyramids(split: str, image_size: int) -> list[np.ndarray]:
    """Each photograph of the split at each zoom, [3, height, width]."""
    paths = [path for name, path in sample_photographs().items() if name in PHOTOGRAPHS[split]]
    if not paths:
        raise ValueError(f"digits: expected {', '.join(PHOTOGRAPHS[split])} in scikit-image's data folder, got none")
    levels = []
    for path in paths:
        # Grey, because gates learned to recognise the few training photographs by colour and failed on others.
        photograph = decode_image(path).convert("L").convert("RGB")
        for zoom in _ZOOMS:
            scale = zoom * image_size / min(photograph.size)
            width, height = (max(image_size, round(side * scale)) for side in photograph.size)
            resized = np.asarray(photograph.resize((width, height), Image.Resampling.BICUBIC))
            levels.append(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    return levels


def _place(ink: Tensor, image_size: int, rng: np.random.Generator) -> Tensor:
    """Boxes [n, 4] of the ink's size, at random places in the image."""
    size = len(ink)
    boxes = np.empty((size, 4), dtype=np.int64)
    for axis in (0, 1):
        first, last = extent(ink, axis)
        boxes[:, axis] = (rng.random(size) * (image_size - (last - first) + 1)).astype(np.int64)
        boxes[:, axis + 2] = boxes[:, axis] + last - first
    return torch.from_numpy(boxes)


def _paint(images: Tensor, ink: Tensor, boxes: Tensor, rng: np.random.Generator) -> None:
    """Blends each digit into its box, in place."""
    levels = rng.uniform(*INK, len(images))
    lefts, tops = extent(ink, 0)[0], extent(ink, 1)[0]
    pixels, alphas = images.numpy(), ink.numpy()
    for i, (left, top, right, bottom) in enumerate(boxes.numpy()):
        y, x = tops[i], lefts[i]
        alpha = alphas[i, y : y + bottom - top, x : x + right - left]
        blend(pixels[i, :, top:bottom, left:right], alpha, levels[i])
