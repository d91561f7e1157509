"""The training transform of Segmenter's recipe: random size, crop, flip and colours, the same for image and label."""

import random

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from msvit.data.decoding import MEAN_COLOUR
from msvit.data.segmentation.distortion import distort_colours
from msvit.data.segmentation.label_files import IGNORE_INDEX

# Longest side of the base size, as a multiple of the shortest: 2048 of 512 for ADE20K.
_LONGEST = 4
_CROP_TRIES = 10


class Augmentation:
    """Makes a training crop from an image and its label.

    1. The image is scaled to the base size, times a factor from `scales`. The base size has the shorter side `side`,
       or a longer side of 4 * `side` if that is smaller. Images are interpolated linearly without antialiasing, as in
       the recipe; labels take the nearest pixel.
    2. A crop is drawn until it has two classes or more and none of them covers `largest_class` of its labelled pixels;
       after ten draws that do not, the eleventh is taken.
    3. It is flipped with probability `flip`, its colours are changed (`distort_colours`), and it is padded at the right
       and at the bottom.

    All random numbers come from the module `random`, so `random.seed` determines the result.

    Args:
        crop_size: (height, width) of the result in pixels.
        side: shorter side of the base size in pixels; None for the shorter side of the crop.
        scales: smallest and largest factor of the base size.
        largest_class: share of the labelled pixels below which every class should stay; 1 takes the first crop.
        flip: probability of a horizontal flip.
        distort: whether colours are changed.
        pad_colour: RGB colour of padding, the mean that the model subtracts, so that padding is 0 after normalisation.
        ignore_index: label of padding and of pixels without a class.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        *,
        side: int | None = None,
        scales: tuple[float, float] = (0.5, 2.0),
        largest_class: float = 0.75,
        flip: float = 0.5,
        distort: bool = True,
        pad_colour: tuple[int, int, int] = MEAN_COLOUR,
        ignore_index: int = IGNORE_INDEX,
    ) -> None:
        for name, value, holds, expected in (
            ("crop_size", crop_size, min(crop_size) >= 1, "1 pixel or more"),
            ("side", side, side is None or side >= 1, "1 pixel or more"),
            ("scales", scales, 0 < scales[0] <= scales[1], "0 < smallest <= largest"),
            ("largest_class", largest_class, 0 < largest_class <= 1, "a share in (0, 1]"),
            ("flip", flip, 0 <= flip <= 1, "a probability in [0, 1]"),
        ):
            if not holds:
                raise ValueError(f"{name}: expected {expected}, got {value}")
        self.crop_size = crop_size
        self.side = min(crop_size) if side is None else side
        self.scales = scales
        self.largest_class = largest_class
        self.flip = flip
        self.distort = distort
        self.pad_colour = pad_colour
        self.ignore_index = ignore_index

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Transforms an image, uint8 [3, H, W], and its label, uint8 [H, W], to uint8 of the crop's size."""
        image, label = self._resize(image, label)
        image, label = self._crop(image, label)
        if random.random() < self.flip:
            image, label = F.horizontal_flip(image), F.horizontal_flip(label[None])[0]
        if self.distort:
            image = distort_colours(image)
        return self._pad(image, label)

    def _resize(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        factor = random.uniform(*self.scales)
        size = scaled_size(label.shape[0], label.shape[1], int(self.side * factor), int(_LONGEST * self.side * factor))
        image = F.resize(image, size, InterpolationMode.BILINEAR, antialias=False)
        return image, F.resize(label[None], size, InterpolationMode.NEAREST_EXACT)[0]

    def _crop(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        window = self._window(label)
        if self.largest_class < 1:
            for _ in range(_CROP_TRIES):
                if self._is_varied(label[window]):
                    break
                window = self._window(label)
        return image[:, *window], label[window]

    def _window(self, label: Tensor) -> tuple[slice, slice]:
        height, width = self.crop_size
        top = random.randint(0, max(0, label.shape[0] - height))
        left = random.randint(0, max(0, label.shape[1] - width))
        return slice(top, top + height), slice(left, left + width)

    def _is_varied(self, label: Tensor) -> bool:
        counts = torch.bincount(label.flatten(), minlength=self.ignore_index + 1)
        counts[self.ignore_index] = 0
        return int((counts > 0).sum()) > 1 and int(counts.max()) < self.largest_class * int(counts.sum())

    def _pad(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        height, width = label.shape
        padding = [0, 0, self.crop_size[1] - width, self.crop_size[0] - height]
        if not any(padding):
            return image.contiguous(), label.contiguous()
        image = F.pad(image, padding, fill=list(self.pad_colour))
        return image, F.pad(label[None], padding, fill=self.ignore_index)[0]


def scaled_size(height: int, width: int, shorter: int, longer: int) -> list[int]:
    """Largest size of the same shape whose shorter side is at most `shorter`, and the longer at most `longer`."""
    scale = min(shorter / min(height, width), longer / max(height, width))
    return [max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))]
