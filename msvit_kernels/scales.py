"""`Scales`: which tokens an image could have, and how many it has. Nothing else in the project counts them."""

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Count = TypeVar("Count", int, float, Tensor)


def tokens_gained(scale_factor: int) -> int:
    """Tokens that a region has more as a fine one than as a coarse one: s * s - 1."""
    return scale_factor**2 - 1


def region_tokens(fine: Count, scale_factor: int) -> Count:
    """Tokens of a region: 1 + m (s * s - 1), with `fine` the mask m in {0, 1} or the share of fine regions."""
    return 1 + fine * tokens_gained(scale_factor)


@dataclass(frozen=True)
class Scales:
    """The candidates of an image: prefix tokens, then the coarse grid, then the fine grid, both in raster order.

    Attributes:
        regions: (Hc, Wc), the coarse grid.
        scale_factor: s, fine tokens along one side of a region.
        num_prefix: prefix tokens (class, registers).
    """

    regions: tuple[int, int]
    scale_factor: int
    num_prefix: int

    def __post_init__(self) -> None:
        # Each by itself: a comparison of two sizes would tie them to each other in torch.compile.
        if self.regions[0] < 0 or self.regions[1] < 0:
            raise ValueError(f"regions: expected two numbers of at least 0, got {self.regions}")
        if self.scale_factor < 2:
            raise ValueError(f"scale_factor: expected at least 2, got {self.scale_factor}")
        if self.num_prefix < 0:
            raise ValueError(f"num_prefix: expected at least 0, got {self.num_prefix}")

    @property
    def num_regions(self) -> int:
        """Nc = Hc * Wc."""
        return self.regions[0] * self.regions[1]

    @property
    def grid_size(self) -> tuple[int, int]:
        """(Hf, Wf), the fine grid."""
        return self.regions[0] * self.scale_factor, self.regions[1] * self.scale_factor

    @property
    def most_patches(self) -> int:
        """Nf = Hf * Wf, the patch tokens of an image whose regions are all fine."""
        return self.num_regions * self.scale_factor**2

    @property
    def most_tokens(self) -> int:
        """Tokens that no image exceeds, prefix included: what bounds a sequence."""
        return self.num_prefix + self.most_patches

    @property
    def num_candidates(self) -> int:
        """Tokens that an image could have: prefix, coarse and fine ones."""
        return self.num_prefix + self.num_regions + self.most_patches

    @property
    def possible_patches(self) -> range:
        """Numbers of patch tokens that an image can have."""
        return range(self.num_regions, self.most_patches + 1, tokens_gained(self.scale_factor))

    def patches(self, num_fine: Count) -> Count:
        """Patch tokens of an image with `num_fine` fine regions; a mean of those gives the mean."""
        return self.num_regions + num_fine * tokens_gained(self.scale_factor)

    def mean_patches(self, fine_share: Count) -> Count:
        """Patch tokens per image where that share of all regions is fine."""
        return region_tokens(fine_share, self.scale_factor) * self.num_regions

    def total_tokens(self, batch: int, num_fine: int) -> int:
        """Packed rows, prefix included, of a batch that has `num_fine` fine regions in all."""
        return batch * (self.num_prefix + self.num_regions) + num_fine * tokens_gained(self.scale_factor)
