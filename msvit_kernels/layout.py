"""`Packing` and `MixedScaleLayout`: the positions of packed tokens, and the candidates that they stand for."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from msvit_kernels import consistency, validation
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

    _prefix: ClassVar[str] = "packing."  # of the names of fields in messages

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
        if consistency.are_readable(cu_seqlens):
            consistency.check_packing("", cu_seqlens, total_tokens, max_seqlen, num_prefix)
        images = torch.arange(cu_seqlens.shape[0] - 1, dtype=torch.int32, device=cu_seqlens.device)
        batch_index = images.repeat_interleave(cu_seqlens.diff(), output_size=total_tokens)
        return Packing(cu_seqlens, max_seqlen, total_tokens, batch_index, num_prefix)

    @property
    def batch(self) -> int:
        """Number of images."""
        return self.cu_seqlens.shape[0] - 1

    def validate(self) -> None:
        """Raises if a field has the wrong kind or shape, or if the fields do not fit together.

        Contents are compared on the CPU and, on a GPU, only if MSVIT_CHECK=1. Nothing is checked while torch.compile
        traces.

        Raises:
            TypeError: a field has the wrong type or dtype.
            ValueError: a field has the wrong shape, device or contents.
        """
        if torch.compiler.is_compiling():
            return
        self._check_kinds(None)
        if consistency.are_readable(self.cu_seqlens):
            self._check_contents()

    def require_kinds(self, device: torch.device | None) -> None:
        """Raises unless every field has the right type, dtype and shape and lies on `device` (if None, all on one)."""
        # Once for each device: the fields of a packing cannot be replaced, only written to.
        checked: set[torch.device | None] = self.__dict__.setdefault("_kinds_on", set())
        if device not in checked:
            self._check_kinds(device)
            checked.add(device)

    def _check_kinds(self, device: torch.device | None) -> None:
        for name in ("max_seqlen", "total_tokens", "num_prefix"):
            validation.require_int(self._prefix + name, getattr(self, name), 0)
        validation.validate_offsets(self._prefix + "cu_seqlens", self.cu_seqlens, device)
        shape, device = (self.total_tokens,), self.cu_seqlens.device
        validation.require_array(self._prefix + "batch_index", self.batch_index, torch.int32, shape, device)

    def _check_contents(self) -> None:
        consistency.check_packing(
            self._prefix,
            self.cu_seqlens,
            self.total_tokens,
            self.max_seqlen,
            self.num_prefix,
            batch_index=self.batch_index,
        )

    def is_prefix(self) -> Tensor:
        """bool [total_tokens], True for each prefix token."""
        self.validate()
        return self._is_prefix()

    def _is_prefix(self) -> Tensor:
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
        self.validate()
        validation.require_tensor("mask", mask, 1, (torch.bool,), self.cu_seqlens.device)
        validation.require_shape("mask", mask, (self.total_tokens,))
        if self.num_prefix:
            mask = mask | self._is_prefix()
        before = F.pad(mask.cumsum(0, dtype=torch.int32), (1, 0))  # kept rows before each row
        cu_seqlens = before.index_select(0, self.cu_seqlens)
        if total_tokens is None:
            total_tokens = int(before[-1])
        else:
            validation.require_int("total_tokens", total_tokens, 0)
            if consistency.are_readable(cu_seqlens):
                name = "total_tokens: offsets of the rows kept"
                validation.check_offsets(name, cu_seqlens, total_tokens, self.max_seqlen)
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

    _prefix: ClassVar[str] = "layout."

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

    def _check_kinds(self, device: torch.device | None) -> None:
        super()._check_kinds(device)
        device, batch = self.cu_seqlens.device, self.cu_seqlens.shape[0] - 1
        consistency.require_regions(self.regions, self.num_prefix, device)
        validation.require_array("layout.num_tokens", self.num_tokens, torch.int32, (batch,), device)
        validation.require_array("layout.token_index", self.token_index, torch.int32, (self.total_tokens,), device)
        if self.fine_mask.shape[0] != batch:
            raise ValueError(f"layout.cu_seqlens: expected {self.fine_mask.shape[0] + 1} offsets, got {batch + 1}")
        if self.grid_size != (grid_size := self.scales.grid_size):
            raise ValueError(f"layout.grid_size: expected {grid_size}, got {self.grid_size}")

    def _check_contents(self) -> None:
        self._check_counts()
        rows = self.cu_seqlens, self.batch_index, self.token_index
        consistency.check_layout(self.regions, self.num_prefix, self.total_tokens, *rows)

    def _check_counts(self) -> None:
        """Raises unless the fields that no operator takes fit the others."""
        counts = self.total_tokens, self.max_seqlen, self.num_prefix, self.num_tokens
        consistency.check_packing("layout.", self.cu_seqlens, *counts)

    def _is_prefix(self) -> Tensor:
        return self.token_index < self.num_prefix

    @property
    def regions(self) -> Regions:
        """The packed rows of each region, as the operators take them."""
        return Regions(self.fine_mask, self.region_start, self.scale_factor)

    @property
    def num_candidates(self) -> int:
        """Number of candidates of an image: prefix, coarse and fine tokens."""
        return self.scales.num_candidates


def require_layout(layout: Any, device: torch.device) -> None:
    """Raises unless `layout` is a `MixedScaleLayout` on `device` whose fields have the right kinds.

    The operators compare the contents of the fields that they take; those of the other fields are compared here.
    """
    if not isinstance(layout, MixedScaleLayout):
        raise TypeError(f"layout: expected a MixedScaleLayout, got {type(layout).__name__}")
    if torch.compiler.is_compiling():
        return
    layout.require_kinds(device)
    if consistency.are_readable(layout.cu_seqlens):
        layout._check_counts()
