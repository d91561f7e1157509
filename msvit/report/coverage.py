"""Do fine regions lie where the answer is? Only for data sets that tell where it is."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Coverage:
    """Where the fine regions of some images lie.

    Attributes:
        on_object: share of the fine regions that cover the object; not a number where no region is fine.
        chance: that share expected if each image's fine regions were drawn at random among its regions; likewise.
        found: share of the object's regions that are fine; the share of fine regions is what chance would find.
    """

    on_object: float
    chance: float
    found: float


def object_regions(boxes: Tensor, grid_size: tuple[int, int], coarse: int) -> Tensor:
    """bool [n, Hc, Wc]: regions that a box [n, 4] (left, top, right, bottom in pixels) reaches into."""
    left, top, right, bottom = (boxes[:, i, None] for i in range(4))
    y, x = (coarse * torch.arange(count) for count in grid_size)
    rows = (y < bottom) & (y + coarse > top)  # [n, Hc]
    columns = (x < right) & (x + coarse > left)
    return rows[:, :, None] & columns[:, None, :]


def measure_coverage(masks: Tensor, boxes: Tensor, coarse: int) -> Coverage:
    """Compares fine regions, bool [n, Hc, Wc], with the regions of the boxes [n, 4]."""
    covered = object_regions(boxes, (masks.shape[1], masks.shape[2]), coarse)
    fine, hits = masks.sum(dtype=torch.float64), (masks & covered).sum(dtype=torch.float64)
    # An image with f fine regions, o of the N regions being the object's, has f o / N hits by chance.
    expected = (masks.flatten(1).sum(1).double() * covered.flatten(1).double().mean(1)).sum()
    return Coverage(float(hits / fine), float(expected / fine), float(hits / covered.sum()))
