"""`Packing` and `MixedScaleLayout`: where the tokens of a batch lie once they are packed, and what they are."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from msvit_kernels import validation
from msvit_kernels.calls import Regions
from msvit_kernels.scales import Scales


@dataclass(frozen=True, eq=False)
class Packing:
    """Where packed rows of any kind lie: all that attention, pooling and drop path need to know.

    Inside an image come its prefix tokens, then its other tokens, whatever they are.

    Attributes:
        cu_seqlens: int32 [batch + 1], first packed row of each image, then the total.
        max_seqlen: tokens that no image exceeds; a bound, not read from the device.
        total_tokens: rows of the packed tensors, prefix included.
        batch_index: int32 [total_tokens], the image of each row.
        num_prefix: prefix tokens of each image.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    total_tokens: int
    batch_index: Tensor
    num_prefix: int

    @classmethod
    def from_offsets(cls, cu_seqlens: Tensor, max_seqlen: int, total_tokens: int, num_prefix: int = 0) -> "Packing":
        """The packing that these offsets describe.

        Args:
            cu_seqlens: int32 [batch + 1], contiguous, from 0 to `total_tokens`.
            max_seqlen: tokens that no image exceeds.
            total_tokens: rows in all; an int, so that nothing is read from the device.
            num_prefix: rows at the beginning of each image that are prefix tokens.

        Raises:
            TypeError, ValueError: an argument of another type, dtype, shape or range; the offsets themselves are
                checked on the CPU, and on a GPU under MSVIT_CHECK=1.
        """
        validation.validate_offsets("cu_seqlens", cu_seqlens, None)
        for name, value in (("max_seqlen", max_seqlen), ("total_tokens", total_tokens), ("num_prefix", num_prefix)):
            validation.require_int(name, value, 0)
        _check_offsets("cu_seqlens", cu_seqlens, total_tokens, max_seqlen)
        _check_prefix(cu_seqlens, num_prefix)
        images = torch.arange(cu_seqlens.shape[0] - 1, dtype=torch.int32, device=cu_seqlens.device)
        batch_index = images.repeat_interleave(cu_seqlens.diff(), output_size=total_tokens)
        return Packing(cu_seqlens, max_seqlen, total_tokens, batch_index, num_prefix)

    @property
    def batch(self) -> int:
        """Number of images."""
        return self.cu_seqlens.shape[0] - 1

    def is_prefix(self) -> Tensor:
        """bool [total_tokens]: which rows are prefix tokens."""
        rows = torch.arange(self.total_tokens, dtype=torch.int32, device=self.cu_seqlens.device)
        return rows - self.cu_seqlens.index_select(0, self.batch_index) < self.num_prefix

    def keep(self, mask: Tensor, total_tokens: int | None = None) -> tuple[Tensor, "Packing"]:
        """Leaves rows out.

        Args:
            mask: bool [total_tokens], the rows that stay; prefix tokens stay in any case.
            total_tokens: how many rows stay, prefix included, where the caller knows it: then nothing is read from
                the device. None: one integer is.

        Returns:
            int64 [kept], the rows that stay, in order, and the packing of those.

        Raises:
            TypeError, ValueError: a mask of another shape, dtype or device; `total_tokens` other than the mask asks
                for, checked on the CPU, and on a GPU under MSVIT_CHECK=1.
        """
        validation.require_tensor("mask", mask, 1, (torch.bool,), self.cu_seqlens.device)
        validation.require_shape("mask", mask, (self.total_tokens,))
        if self.num_prefix:
            mask = mask | self.is_prefix()
        before = F.pad(mask.cumsum(0, dtype=torch.int32), (1, 0))  # kept rows before each row
        cu_seqlens = before.index_select(0, self.cu_seqlens)
        if total_tokens is None:
            total_tokens = int(before[-1])
        else:
            validation.require_int("total_tokens", total_tokens, 0)
            name = "total_tokens: offsets of the rows that stay"
            _check_offsets(name, cu_seqlens, total_tokens, self.max_seqlen)
        # Filled up with a row that exists, in case that the mask has fewer and nobody looked.
        rows = torch.nonzero_static(mask, size=total_tokens, fill_value=0).flatten()
        batch_index = self.batch_index.index_select(0, rows)
        return rows, Packing(cu_seqlens, self.max_seqlen, total_tokens, batch_index, self.num_prefix)


@dataclass(frozen=True, eq=False)
class MixedScaleLayout(Packing):
    """A packing of mixed-scale tokens, made by `mixed_scale_layout`, and what its rows mean.

    Inside an image: prefix tokens, then regions in raster order; a fine region holds its s*s tokens in raster order
    within the region. A candidate index counts prefix tokens, then coarse, then fine tokens, in raster order.

    Attributes:
        fine_mask: bool [batch, Hc, Wc], True where a region is fine.
        num_tokens: int32 [batch], active tokens of each image, prefix included.
        token_index: int32 [total_tokens], the candidate of each row.
        region_start: int32 [batch, Hc * Wc], first packed row of each region.
        grid_size: (Hf, Wf), the fine grid.
        scale_factor: s, fine tokens along one side of a region.

    `max_seqlen` is num_prefix + Hf * Wf. The other attributes are those of `Packing`.
    """

    fine_mask: Tensor
    num_tokens: Tensor
    token_index: Tensor
    region_start: Tensor
    grid_size: tuple[int, int]
    scale_factor: int

    @property
    def scales(self) -> Scales:
        """The candidates that the rows were taken from."""
        return Scales((self.fine_mask.shape[1], self.fine_mask.shape[2]), self.scale_factor, self.num_prefix)

    def is_prefix(self) -> Tensor:
        """bool [total_tokens]: which rows are prefix tokens, whose candidates come first."""
        return self.token_index < self.num_prefix

    @property
    def regions(self) -> Regions:
        """What the operators need to know of the regions."""
        return Regions(self.fine_mask, self.region_start, self.scale_factor)

    @property
    def num_candidates(self) -> int:
        """Tokens that an image could have: prefix, coarse and fine ones."""
        return self.scales.num_candidates


def _check_offsets(name: str, cu_seqlens: Tensor, total_tokens: int, max_seqlen: int) -> None:
    # Not while torch.compile traces: whoever uses the offsets checks them when the graph runs.
    if not torch.compiler.is_compiling() and validation.checks_contents(cu_seqlens):
        validation.check_offsets(name, cu_seqlens, total_tokens, max_seqlen)


def _check_prefix(cu_seqlens: Tensor, num_prefix: int) -> None:
    if torch.compiler.is_compiling() or not num_prefix or cu_seqlens.shape[0] < 2:
        return
    if validation.checks_contents(cu_seqlens) and (shortest := int(cu_seqlens.diff().min())) < num_prefix:
        raise ValueError(f"num_prefix: expected at most the rows of the shortest image, {shortest}, got {num_prefix}")


def require_layout(layout: Any, device: torch.device) -> None:
    """Raises unless `layout` is a `MixedScaleLayout` on `device`."""
    if not isinstance(layout, MixedScaleLayout):
        raise TypeError(f"layout: expected a MixedScaleLayout, got {type(layout).__name__}")
    if layout.fine_mask.device != device:
        raise ValueError(f"layout: expected device {device}, got {layout.fine_mask.device}")
