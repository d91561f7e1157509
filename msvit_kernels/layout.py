"""`Packing` and `MixedScaleLayout`: the positions of packed tokens, and the candidates that they stand for."""

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
    """Positions of packed rows of any kind, as attention, pooling and drop path use them.

    The rows of an image are its prefix tokens, then its other tokens.

    Attributes:
        cu_seqlens: int32 [batch + 1], first packed row of each image, then the total.
        max_seqlen: upper bound of the rows of an image; not read from the device.
        total_tokens: number of packed rows, prefix included.
        batch_index: int32 [total_tokens], image of each row.
        num_prefix: number of prefix tokens of each image.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    total_tokens: int
    batch_index: Tensor
    num_prefix: int

    @classmethod
    def from_offsets(cls, cu_seqlens: Tensor, max_seqlen: int, total_tokens: int, num_prefix: int = 0) -> "Packing":
        """Makes a packing from offsets.

        Args:
            cu_seqlens: int32 [batch + 1], contiguous, from 0 to `total_tokens`.
            max_seqlen: upper bound of the rows of an image.
            total_tokens: number of packed rows; an argument, so that nothing is copied to the host.
            num_prefix: number of prefix tokens at the beginning of each image.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a shape, number or offset is invalid. Offsets are checked on the CPU and, on a GPU, only if
                MSVIT_CHECK=1.
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
        """bool [total_tokens], True for each prefix token."""
        rows = torch.arange(self.total_tokens, dtype=torch.int32, device=self.cu_seqlens.device)
        return rows - self.cu_seqlens.index_select(0, self.batch_index) < self.num_prefix

    def keep(self, mask: Tensor, total_tokens: int | None = None) -> tuple[Tensor, "Packing"]:
        """Selects rows and packs them again.

        Args:
            mask: bool [total_tokens], True for each row to keep; prefix tokens are kept in any case.
            total_tokens: number of rows kept, prefix included. If None, one integer is copied to the host.

        Returns:
            rows: int64 [kept], the rows kept, in ascending order.
            packing: the packing of these rows.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: the mask has the wrong shape or device, or `total_tokens` differs from the number of rows kept
                (checked on the CPU and, on a GPU, only if MSVIT_CHECK=1).
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
            name = "total_tokens: offsets of the rows kept"
            _check_offsets(name, cu_seqlens, total_tokens, self.max_seqlen)
        # fill_value is a valid row, because an unchecked `total_tokens` may exceed the rows of the mask.
        rows = torch.nonzero_static(mask, size=total_tokens, fill_value=0).flatten()
        batch_index = self.batch_index.index_select(0, rows)
        return rows, Packing(cu_seqlens, self.max_seqlen, total_tokens, batch_index, self.num_prefix)


@dataclass(frozen=True, eq=False)
class MixedScaleLayout(Packing):
    """Packing of the active tokens of two scales, made by `mixed_scale_layout`.

    The rows of an image are its prefix tokens, then its regions in raster order: one row for a coarse region, s * s
    rows in raster order for a fine one. The candidates of an image are numbered prefix first, then coarse tokens, then
    fine tokens, each in raster order.

    Attributes:
        fine_mask: bool [batch, Hc, Wc], True for a fine region.
        num_tokens: int32 [batch], number of active tokens of each image, prefix included.
        token_index: int32 [total_tokens], candidate of each row.
        region_start: int32 [batch, Hc * Wc], first packed row of each region.
        grid_size: (Hf, Wf), size of the fine grid in tokens.
        scale_factor: s, fine tokens along one side of a region.

    `max_seqlen` is num_prefix + Hf * Wf. `Packing` describes the other attributes.
    """

    fine_mask: Tensor
    num_tokens: Tensor
    token_index: Tensor
    region_start: Tensor
    grid_size: tuple[int, int]
    scale_factor: int

    @property
    def scales(self) -> Scales:
        """Counts of the candidates of an image."""
        return Scales((self.fine_mask.shape[1], self.fine_mask.shape[2]), self.scale_factor, self.num_prefix)

    def is_prefix(self) -> Tensor:
        """bool [total_tokens], True for each prefix token."""
        return self.token_index < self.num_prefix

    @property
    def regions(self) -> Regions:
        """The packed rows of each region, as the operators take them."""
        return Regions(self.fine_mask, self.region_start, self.scale_factor)

    @property
    def num_candidates(self) -> int:
        """Number of candidates of an image: prefix, coarse and fine tokens."""
        return self.scales.num_candidates


def _check_offsets(name: str, cu_seqlens: Tensor, total_tokens: int, max_seqlen: int) -> None:
    # Not while torch.compile traces: the operators check the offsets when the graph runs.
    if not torch.compiler.is_compiling() and validation.checks_contents(cu_seqlens):
        validation.check_offsets(name, cu_seqlens, total_tokens, max_seqlen)


def _check_prefix(cu_seqlens: Tensor, num_prefix: int) -> None:
    if torch.compiler.is_compiling() or not num_prefix or cu_seqlens.shape[0] < 2:
        return
    if validation.checks_contents(cu_seqlens) and (shortest := int(cu_seqlens.diff().min())) < num_prefix:
        raise ValueError(f"num_prefix: expected at most {shortest} (the shortest image), got {num_prefix}")


def require_layout(layout: Any, device: torch.device) -> None:
    """Raises unless `layout` is a `MixedScaleLayout` on `device`."""
    if not isinstance(layout, MixedScaleLayout):
        raise TypeError(f"layout: expected a MixedScaleLayout, got {type(layout).__name__}")
    if layout.fine_mask.device != device:
        raise ValueError(f"layout: expected device {device}, got {layout.fine_mask.device}")
