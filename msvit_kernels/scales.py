"""`Scales`: the numbers of candidates and of active tokens of an image, computed nowhere else in the project."""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Count = TypeVar("Count", int, float, Tensor)


def tokens_gained(scale_factor: int) -> int:
    """Tokens that a region gains if it is fine instead of coarse: s * s - 1."""
    return scale_factor**2 - 1


def region_tokens(fine: Count, scale_factor: int) -> Count:
    """Tokens of a region: 1 + fine * (s * s - 1). `fine` is 0 or 1; a share of fine regions gives the mean."""
    return 1 + fine * tokens_gained(scale_factor)


@dataclass(frozen=True)
class Scales:
    """The candidates of an image: prefix tokens, then the coarse grid, then the fine grid, both in raster order.

    Attributes:
        regions: (Hc, Wc), size of the coarse grid in regions.
        scale_factor: s, fine tokens along one side of a region.
        num_prefix: number of prefix tokens (class, registers).
    """

    regions: tuple[int, int]
    scale_factor: int
    num_prefix: int

    def __post_init__(self) -> None:
        # Two tests, not one of the smaller size: torch.compile would guard on which of them is smaller.
        if self.regions[0] < 0 or self.regions[1] < 0:
            raise ValueError(f"regions: expected two numbers of at least 0, got {self.regions}")
        if self.scale_factor < 2:
            raise ValueError(f"scale_factor: expected at least 2, got {self.scale_factor}")
        if self.num_prefix < 0:
            raise ValueError(f"num_prefix: expected at least 0, got {self.num_prefix}")

    @property
    def num_regions(self) -> int:
        """Nc = Hc * Wc, the number of regions and of coarse tokens."""
        return self.regions[0] * self.regions[1]

    @property
    def grid_size(self) -> tuple[int, int]:
        """(Hf, Wf), size of the fine grid in tokens."""
        return self.regions[0] * self.scale_factor, self.regions[1] * self.scale_factor

    @property
    def most_patches(self) -> int:
        """Nf = Hf * Wf, the number of fine tokens: patch tokens of an image if all its regions are fine."""
        return self.num_regions * self.scale_factor**2

    @property
    def most_tokens(self) -> int:
        """Upper bound of the tokens of an image, prefix included."""
        return self.num_prefix + self.most_patches

    @property
    def num_candidates(self) -> int:
        """Number of candidates of an image: prefix, coarse and fine tokens."""
        return self.num_prefix + self.num_regions + self.most_patches

    @property
    def possible_patches(self) -> range:
        """The numbers of patch tokens that an image can have."""
        return range(self.num_regions, self.most_patches + 1, tokens_gained(self.scale_factor))

    def patches(self, num_fine: Count) -> Count:
        """Patch tokens of an image with `num_fine` fine regions; a mean of `num_fine` gives the mean."""
        return self.num_regions + num_fine * tokens_gained(self.scale_factor)

    def mean_patches(self, fine_share: Count) -> Count:
        """Mean number of patch tokens of an image if the share `fine_share` of all regions is fine."""
        return region_tokens(fine_share, self.scale_factor) * self.num_regions

    def total_tokens(self, batch: int, num_fine: int) -> int:
        """Packed rows, prefix included, of a batch with `num_fine` fine regions in total."""
        return batch * (self.num_prefix + self.num_regions) + num_fine * tokens_gained(self.scale_factor)
