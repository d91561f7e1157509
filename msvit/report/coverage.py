"""The overlap of fine regions with the objects in images, for data sets that give the place of the object."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coverage:
    """How well the fine regions of some images cover their objects.

    Attributes:
        on_object: share of the fine regions that cover the object; NaN if no region is fine.
        chance: expectation of `on_object` if the fine regions of each image were random; NaN if no region is fine.
        found: share of the object's regions that are fine; by chance it would be the overall share of fine regions.
    """

    on_object: float
    chance: float
    found: float


def object_regions(boxes: Tensor, grid_size: tuple[int, int], coarse: int) -> Tensor:
    """Finds the regions that overlap with boxes.

    Args:
        boxes: int64 [n, 4], left, top, right and bottom in pixels, right and bottom exclusive.
        grid_size: (Hc, Wc), regions of an image.
        coarse: width of a region in pixels.

    Returns:
        bool [n, Hc, Wc].
    """
    left, top, right, bottom = (boxes[:, i, None] for i in range(4))
    y, x = (coarse * torch.arange(count) for count in grid_size)
    rows = (y < bottom) & (y + coarse > top)  # [n, Hc]
    columns = (x < right) & (x + coarse > left)
    return rows[:, :, None] & columns[:, None, :]


def measure_coverage(masks: Tensor, boxes: Tensor, coarse: int) -> Coverage:
    """Compares fine regions with the regions of objects.

    Args:
        masks: bool [n, Hc, Wc], fine regions.
        boxes: int64 [n, 4], left, top, right and bottom of the objects in pixels, right and bottom exclusive.
        coarse: width of a region in pixels.

    Returns:
        The shares over all images.
    """
    covered = object_regions(boxes, (masks.shape[1], masks.shape[2]), coarse)
    fine, hits = masks.sum(dtype=torch.float64), (masks & covered).sum(dtype=torch.float64)
    # If f of an image's N regions are fine and o belong to the object, f o / N hits are expected by chance.
    expected = (masks.flatten(1).sum(1).double() * covered.flatten(1).double().mean(1)).sum()
    return Coverage(float(hits / fine), float(expected / fine), float(hits / covered.sum()))
