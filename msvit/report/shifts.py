"""Compares the learned gate with a radial pattern on randomly zoomed and shifted images (appendix G.1)."""

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
    """A zoom factor, which enlarges if above 1, and a shift of the centre in image widths and heights."""

    zoom: float
    shift_x: float
    shift_y: float


@dataclass(frozen=True)
class Comparison:
    """The results of both gates for the images under one transform."""

    transform: Transform
    learned: Evaluation
    radial: Evaluation


def random_transforms(count: int, seed: int = 0) -> list[Transform]:
    """Draws zooms, uniform in [0.7, 1.4], and shifts, uniform in [-0.3, 0.3].

    Args:
        count: number of random transforms.
        seed: seed of the transforms.

    Returns:
        The identity and `count` random transforms.
    """
    draw = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    zooms = _ZOOM[0] + (_ZOOM[1] - _ZOOM[0]) * draw[:, 0]
    shifts = _SHIFT * (2 * draw[:, 1:] - 1)
    drawn = [Transform(float(zoom), float(x), float(y)) for zoom, (x, y) in zip(zooms, shifts, strict=True)]
    return [Transform(1.0, 0.0, 0.0), *drawn]


def apply(images: Tensor, transform: Transform) -> Tensor:
    """Zooms and shifts images; pixels from outside an image repeat its border.

    Args:
        images: uint8 [n, 3, H, W], on the CPU.
        transform: zoom and shift.

    Returns:
        uint8 [n, 3, H, W].
    """
    scale = 1 / transform.zoom
    # Maps a position in the result to one in the image, both in [-1, 1].
    theta = torch.tensor([[scale, 0, -2 * scale * transform.shift_x], [0, scale, -2 * scale * transform.shift_y]])
    moved = []
    for part in images.split(256):
        grid = F.affine_grid(theta.expand(len(part), 2, 3), [*part.shape], align_corners=False)
        pixels = F.grid_sample(part.float(), grid, padding_mode="border", align_corners=False)
        moved.append(pixels.round().to(torch.uint8))
    return torch.cat(moved)


def radial_mask(grid_size: tuple[int, int], fine_regions: int) -> Tensor:
    """Makes the regions closest to the centre fine; ties go to the first regions in raster order.

    Args:
        grid_size: (Hc, Wc), regions of an image.
        fine_regions: number of fine regions.

    Returns:
        bool [Hc, Wc].
    """
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
    """Compares a learned gate with a radial pattern on the same images under the same transforms.

    The pattern has as many fine regions as the learned gate chooses on average without a transform.

    Args:
        learned: model with the gate to examine, on the device to run on.
        fixed: model for the radial pattern, either trained with such a pattern or `learned` itself.
        test: images with their labels, on the CPU.
        batch_size: images per batch.
        count: number of random transforms.

    Returns:
        One comparison without a transform, then one for each random transform.
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
