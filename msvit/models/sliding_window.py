"""The views of an image, cut into windows, and the mean of the windows' logits in the size of the image.

The places of the windows, the enlargement of small images and the mean over views are those of the original Segmenter
(segm/model/utils.py of rstrudel/segmenter).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class ViewMean:
    """The logits of an image: those of its only view, or the logarithm of the mean of its views' probabilities.

    Args:
        size: (height, width) of the image in pixels.
        num_views: number of views that will be added.
    """

    def __init__(self, size: tuple[int, int], num_views: int) -> None:
        self._size, self._num_views = size, num_views
        self._log_sum: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """[classes, height, width], after all views were added."""
        assert self._log_sum is not None
        return self._log_sum

    def add(self, logits: Tensor, mirrored: bool) -> None:
        """Adds the logits of a view, [classes, h, w]."""
        logits = resized(logits, self._size)
        if mirrored:
            logits = logits.flip(2)
        if self._num_views > 1:
            logits = F.log_softmax(logits, 0).sub_(math.log(self._num_views))
        self._log_sum = logits if self._log_sum is None else torch.logaddexp(self._log_sum, logits, out=logits)


class View:
    """One view of an image, and the sum of the logits of its windows, which exists from the first window to the last.

    Args:
        mean: mean over the views of the image; this view is added to it when it is complete.
        pixels: floats [3, h, w]; h and w are at least `window`.
        mirrored: whether `pixels` is a mirror image.
        window: height and width of a window in pixels.
        stride: distance in pixels between two windows, 1 to `window`.

    Attributes:
        places: (top, left) of each window, row by row.
    """

    def __init__(self, mean: ViewMean, pixels: Tensor, mirrored: bool, window: int, stride: int) -> None:
        self._mean, self._pixels, self._mirrored, self._window = mean, pixels, mirrored, window
        self._starts = [window_starts(length, window, stride) for length in pixels.shape[1:]]
        self.places = [(top, left) for top in self._starts[0] for left in self._starts[1]]
        self._missing = len(self.places)
        self._sum: Tensor | None = None

    def crop(self, place: tuple[int, int]) -> Tensor:
        """The pixels of a window: [3, window, window]."""
        return self._at(self._pixels, place)

    def add(self, place: tuple[int, int], logits: Tensor) -> None:
        """Adds the logits of a window, [classes, window, window]; the last one completes the view."""
        if self._sum is None:
            dtype = torch.promote_types(logits.dtype, torch.float32)
            self._sum = logits.new_zeros(len(logits), *self._pixels.shape[1:], dtype=dtype)
        self._at(self._sum, place).add_(logits)
        self._missing -= 1
        if not self._missing:
            rows, columns = (self._counts(axis) for axis in (0, 1))
            self._mean.add(self._sum.div_(rows[:, None] * columns), self._mirrored)
            self._sum = None

    def _at(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        top, left = place
        return x[:, top : top + self._window, left : left + self._window]

    def _counts(self, axis: int) -> Tensor:
        """fp32: number of windows that cover each row (axis 0) or column (axis 1)."""
        counts = torch.zeros(self._pixels.shape[1 + axis])
        for start in self._starts[axis]:
            counts[start : start + self._window] += 1
        return counts.to(self._pixels.device)


def make_views(
    image: Tensor, scales: Sequence[float], flip: bool, window: int, stride: int
) -> tuple[ViewMean, list[View]]:
    """Makes the views of an image, and the mean to which they are added.

    Args:
        image: floats [3, H, W].
        scales: factors of the image's height and width, one for each view.
        flip: whether the mirror image of each view is a view too.
        window: height and width of a window in pixels. A view whose shorter side is below is enlarged.
        stride: distance in pixels between two windows, 1 to `window`.

    Returns:
        The mean, still without logits, and the views.
    """
    size = image.shape[1], image.shape[2]
    mean = ViewMean(size, len(scales) * (1 + flip))
    views = []
    for scale in scales:
        scaled = scaled_size(size, scale)
        pixels = resized(resized(image, scaled), enlarged_size(scaled, window))
        views.append(View(mean, pixels, False, window, stride))
        if flip:
            views.append(View(mean, pixels.flip(2), True, window, stride))
    return mean, views


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis: the multiples of the stride, then the window that ends at the border.

    Args:
        length: pixels of the axis, at least `window`.
        window: pixels of a window.
        stride: distance in pixels between two windows, 1 to `window`.

    Returns:
        At least one number, in ascending order. The windows cover the axis.
    """
    last = length - window
    return [*range(0, last, stride), last]


def enlarged_size(size: tuple[int, int], window: int) -> tuple[int, int]:
    """(height, width) of an image after it is enlarged, if it must be, so that its shorter side is that of a window."""
    shorter = min(size)
    if shorter >= window:
        return size
    return size[0] * window // shorter, size[1] * window // shorter


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) times `scale`, each rounded to the nearest number of pixels, at least 1."""
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in size)
    return height, width


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[channels, H, W] -> [channels, *size] by bilinear interpolation between the centres of pixels."""
    if tuple(image.shape[1:]) == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]


def resized_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Integers [H, W] -> [*size], in the same dtype: the label of the nearest pixel."""
    # torch interpolates only floats and uint8; fp32 holds every label.
    return F.interpolate(labels[None, None].float(), size, mode="nearest-exact")[0, 0].to(labels.dtype)
