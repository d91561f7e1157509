"""Randomly zoomed and shifted images: the learned gate against fine regions around the centre (appendix G.1)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msvit.evaluation.by_image import Evaluation, TestImages, evaluate
from msvit.gates import RadialGate
from msvit.models import MixedScaleVisionTransformer

_ZOOM = (0.7, 1.4)
_SHIFT = 0.3


@dataclass(frozen=True)
class Transform:
    """zoom: above 1 enlarges. shift_x, shift_y: of the centre, in image widths and heights."""

    zoom: float
    shift_x: float
    shift_y: float


@dataclass(frozen=True)
class Comparison:
    """Both gates on the images under one transform."""

    transform: Transform
    learned: Evaluation
    radial: Evaluation


def random_transforms(count: int, seed: int = 0) -> list[Transform]:
    """The identity, then `count` zooms (0.7 to 1.4) and shifts (up to 0.3), uniform, from a seed."""
    draw = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    zooms = _ZOOM[0] + (_ZOOM[1] - _ZOOM[0]) * draw[:, 0]
    shifts = _SHIFT * (2 * draw[:, 1:] - 1)
    drawn = [Transform(float(zoom), float(x), float(y)) for zoom, (x, y) in zip(zooms, shifts, strict=True)]
    return [Transform(1.0, 0.0, 0.0), *drawn]


def apply(images: Tensor, transform: Transform) -> Tensor:
    """Zoomed and shifted uint8 images [n, 3, H, W]; what comes in from outside continues the border."""
    scale = 1 / transform.zoom
    # A place in the result -> a place in the image, both in [-1, 1].
    theta = torch.tensor([[scale, 0, -2 * scale * transform.shift_x], [0, scale, -2 * scale * transform.shift_y]])
    moved = []
    for part in images.split(256):
        grid = F.affine_grid(theta.expand(len(part), 2, 3), [*part.shape], align_corners=False)
        pixels = F.grid_sample(part.float(), grid, padding_mode="border", align_corners=False)
        moved.append(pixels.round().to(torch.uint8))
    return torch.cat(moved)


def radial_mask(grid_size: tuple[int, int], fine_regions: int) -> Tensor:
    """bool [Hc, Wc]: the regions closest to the centre; among equals those first in raster order."""
    closeness = RadialGate(1)(torch.zeros(1, 3, *grid_size)).flatten()
    mask = torch.zeros(closeness.numel(), dtype=torch.bool)
    mask[closeness.argsort(descending=True, stable=True)[:fine_regions]] = True
    return mask.view(grid_size)


def compare_gates(
    learned: MixedScaleVisionTransformer,
    fixed: MixedScaleVisionTransformer,
    test: TestImages,
    batch_size: int,
    count: int = 24,
) -> list[Comparison]:
    """Both gates on the same images under the same transforms, the first of which is none.

    The fixed pattern has as many fine regions as the learned gate makes on average of the images as they are.

    Args:
        learned: model with the gate to examine, in evaluation mode.
        fixed: model that gets the radial pattern: trained with one, or the same as `learned`.
        test: images.
        batch_size: images at once.
        count: of random transforms.
    """
    pairs: list[Comparison] = []
    pattern: Tensor | None = None
    for transform in random_transforms(count):
        moved = TestImages(apply(test.images, transform), test.labels, None)
        mine = evaluate(learned, moved, batch_size)
        if pattern is None:
            regions = mine.masks[0].numel()
            pattern = radial_mask((mine.masks.shape[1], mine.masks.shape[2]), round(mine.fine_share * regions))
        theirs = evaluate(fixed, moved, batch_size, pattern.expand_as(mine.masks))
        pairs.append(Comparison(transform, mine, theirs))
    return pairs
