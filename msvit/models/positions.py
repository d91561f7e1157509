"""Position encodings for grids of other sizes than the model's own."""

import torch
import torch.nn.functional as F
from torch import Tensor

INTERPOLATIONS = ("bilinear", "bicubic")

# Grids that are kept; images of more sizes than that are resampled anew.
_KEPT = 16


def resample_grid(grid: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resamples position encodings, as Segmenter and mmsegmentation do: without antialiasing, corners not aligned.

    Args:
        grid: [H, W, dim].
        size: (height, width) of the result.
        interpolation: "bilinear" or "bicubic".

    Returns:
        [height, width, dim], differentiable in `grid`; `grid` itself if it has that size.
    """
    if tuple(grid.shape[:2]) == size:
        return grid
    image = grid.permute(2, 0, 1)[None]
    return F.interpolate(image, size=size, mode=interpolation, align_corners=False)[0].permute(1, 2, 0)


class ResampledGrids:
    """Resampled position encodings, each kept until the encodings that it was made from change."""

    def __init__(self) -> None:
        self._found: dict[tuple[tuple[int, int], str], tuple[Tensor, Tensor]] = {}

    def __call__(self, grid: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
        """Like `resample_grid`. With gradients enabled, on a GPU and while torch.compile traces, nothing is kept."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or grid.is_cuda or tuple(grid.shape[:2]) == size:
            return resample_grid(grid, size, interpolation)
        key = size, interpolation
        source, resampled = self._found.pop(key, (None, None))
        # The contents are compared, because a write through `.data` changes no version counter.
        if source is None or resampled is None or source.dtype != grid.dtype or not torch.equal(source, grid):
            source, resampled = grid.clone(), resample_grid(grid, size, interpolation)
        self._found[key] = source, resampled
        if len(self._found) > _KEPT:
            del self._found[next(iter(self._found))]
        return resampled

    def __deepcopy__(self, memo: object) -> "ResampledGrids":
        return ResampledGrids()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return ResampledGrids, ()
