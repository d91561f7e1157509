"""Offsets and indices of packed mixed-scale tokens on the CPU (csrc/cpu/mixed_scale_layout.cpp), exact integers."""

import torch
from torch import Tensor

from msvit_kernels import _C
from msvit_kernels.calls import MixedScaleLayoutIndices, MixedScaleLayoutOffsets

OPTIONS: frozenset[str] = frozenset()


def mixed_scale_layout_offsets(call: MixedScaleLayoutOffsets) -> tuple[Tensor, Tensor, Tensor]:
    """Computes num_tokens [batch], cu_seqlens [batch + 1] and region_start [batch, Hc * Wc], all int32."""
    fine_mask, scale_factor, num_prefix = call
    batch, rows, columns = fine_mask.shape
    num_tokens = torch.empty(batch, dtype=torch.int32)
    cu_seqlens = torch.empty(batch + 1, dtype=torch.int32)
    region_start = torch.empty(batch, rows * columns, dtype=torch.int32)
    _C.mixed_scale_layout_offsets(
        fine_mask=fine_mask.data_ptr(),
        num_tokens=num_tokens.data_ptr(),
        cu_seqlens=cu_seqlens.data_ptr(),
        region_start=region_start.data_ptr(),
        batch=batch,
        num_regions=rows * columns,
        scale_factor=scale_factor,
        num_prefix=num_prefix,
        num_threads=torch.get_num_threads(),
    )
    return num_tokens, cu_seqlens, region_start


def mixed_scale_layout_fwd(call: MixedScaleLayoutIndices) -> tuple[Tensor, Tensor]:
    """Computes batch_index and token_index, both int32 [total_tokens]: image and candidate of each row."""
    regions, cu_seqlens, total_tokens, num_prefix = call
    batch, rows, columns = regions.fine_mask.shape
    batch_index = torch.empty(total_tokens, dtype=torch.int32)
    token_index = torch.empty(total_tokens, dtype=torch.int32)
    _C.mixed_scale_layout_fwd(
        fine_mask=regions.fine_mask.data_ptr(),
        cu_seqlens=cu_seqlens.data_ptr(),
        region_start=regions.region_start.data_ptr(),
        batch_index=batch_index.data_ptr(),
        token_index=token_index.data_ptr(),
        batch=batch,
        rows=rows,
        columns=columns,
        total_tokens=total_tokens,
        scale_factor=regions.scale_factor,
        num_prefix=num_prefix,
        num_threads=torch.get_num_threads(),
    )
    return batch_index, token_index


def unsupported_reason(device_type: str, dtype: torch.dtype = torch.bool) -> str | None:
    """Reason why a mask on this device cannot run here, or None."""
    return None if device_type == "cpu" else f"runs on the CPU, got a {device_type} tensor"
