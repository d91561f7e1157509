"""`MixedScaleLayout`: where the active tokens of a batch lie once they are packed."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class MixedScaleLayout:
    """Offsets and indices of the packed mixed-scale tokens of a batch, made by `mixed_scale_layout`.

    Inside an image: prefix tokens, then regions in raster order; a fine region holds its s*s tokens in raster order
    within the region. A candidate index counts prefix tokens, then coarse, then fine tokens, in raster order.

    Attributes:
        fine_mask: bool [batch, Hc, Wc], True where a region is fine.
        cu_seqlens: int32 [batch + 1], first packed row of each image, then the total.
        num_tokens: int32 [batch], active tokens of each image, prefix included.
        batch_index: int32 [total_tokens], the image of each row.
        token_index: int32 [total_tokens], the candidate of each row.
        region_start: int32 [batch, Hc * Wc], first packed row of each region.
        total_tokens: rows of the packed tensors, prefix included.
        max_seqlen: bound of every `num_tokens`: num_prefix + Hf * Wf.
        grid_size: (Hf, Wf), the fine grid.
        scale_factor: s, fine tokens along one side of a region.
        num_prefix: prefix tokens of each image.
    """

    fine_mask: torch.Tensor
    cu_seqlens: torch.Tensor
    num_tokens: torch.Tensor
    batch_index: torch.Tensor
    token_index: torch.Tensor
    region_start: torch.Tensor
    total_tokens: int
    max_seqlen: int
    grid_size: tuple[int, int]
    scale_factor: int
    num_prefix: int

    @property
    def batch(self) -> int:
        """Number of images."""
        return self.fine_mask.shape[0]

    @property
    def num_candidates(self) -> int:
        """Tokens that an image could have: prefix, coarse and fine ones."""
        height, width = self.grid_size
        return self.num_prefix + self.region_start.shape[1] + height * width
