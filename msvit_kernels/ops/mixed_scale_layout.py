"""`mixed_scale_layout` as torch sees it: an operator for the offsets, then one for the indices of all rows."""

import torch
from torch import Tensor

from msvit_kernels import consistency, dispatch, validation
from msvit_kernels.calls import MixedScaleLayoutIndices, MixedScaleLayoutOffsets
from msvit_kernels.ops.registry import define


def _offsets(call: MixedScaleLayoutOffsets, backend: str | None) -> tuple[Tensor, Tensor, Tensor]:
    mask = call.fine_mask
    consistency.require_mask(*call)
    validation.require_array("fine_mask", mask, torch.bool, tuple(mask.shape), mask.device)
    run = dispatch.resolve_function(
        "mixed_scale_layout", "mixed_scale_layout_offsets", backend, mask.device.type, mask.dtype
    )
    result: tuple[Tensor, Tensor, Tensor] = run(call)
    return result


def _fake_offsets(call: MixedScaleLayoutOffsets) -> tuple[Tensor, Tensor, Tensor]:
    batch, height, width = call.fine_mask.shape
    empty = lambda *size: call.fine_mask.new_empty(size, dtype=torch.int32)  # noqa: E731
    return empty(batch), empty(batch + 1), empty(batch, height * width)


def _indices(call: MixedScaleLayoutIndices, backend: str | None) -> tuple[Tensor, Tensor]:
    regions, cu_seqlens, total_tokens, num_prefix = call
    mask = regions.fine_mask
    consistency.require_regions(regions, num_prefix, None)
    consistency.require_offsets(cu_seqlens, regions)
    validation.require_int("total_tokens", total_tokens, 0)
    if validation.checks_contents(mask):
        consistency.check_layout(regions, num_prefix, total_tokens, cu_seqlens)
    run = dispatch.resolve_function(
        "mixed_scale_layout", "mixed_scale_layout_fwd", backend, mask.device.type, mask.dtype
    )
    result: tuple[Tensor, Tensor] = run(call)
    return result


def _fake_indices(call: MixedScaleLayoutIndices) -> tuple[Tensor, Tensor]:
    return call.cu_seqlens.new_empty(call.total_tokens), call.cu_seqlens.new_empty(call.total_tokens)


mixed_scale_layout_offsets = define(
    "mixed_scale_layout_offsets",
    MixedScaleLayoutOffsets,
    "(Tensor num_tokens, Tensor cu_seqlens, Tensor region_start)",
    _offsets,
    _fake_offsets,
)
mixed_scale_layout_indices = define(
    "mixed_scale_layout", MixedScaleLayoutIndices, "(Tensor batch_index, Tensor token_index)", _indices, _fake_indices
)
