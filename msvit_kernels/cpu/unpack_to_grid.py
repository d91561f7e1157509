"""Packed tokens back on the fine grid, on the CPU (csrc/cpu/unpack_to_grid.cpp).

One pass over tokens and grid each way; backward adds the cells of a coarse token in fp32, in raster order.
"""

import torch
from torch import Tensor

from msvit_kernels import _C

_DTYPES = (torch.float32, torch.bfloat16)


def unpack_to_grid_fwd(tokens: Tensor, fine_mask: Tensor, region_start: Tensor, scale_factor: int) -> Tensor:
    batch, rows, columns = fine_mask.shape
    grid = torch.empty(batch, tokens.shape[1], rows * scale_factor, columns * scale_factor, dtype=tokens.dtype)
    _C.unpack_to_grid_fwd(*_arguments(tokens, grid, fine_mask, region_start, scale_factor))
    return grid


def unpack_to_grid_bwd(
    dgrid: Tensor, fine_mask: Tensor, region_start: Tensor, total_tokens: int, scale_factor: int
) -> Tensor:
    dtokens = torch.empty(total_tokens, dgrid.shape[1], dtype=dgrid.dtype)
    if fine_mask.shape[0] == 0:
        return dtokens.zero_()
    _C.unpack_to_grid_bwd(*_arguments(dtokens, dgrid, fine_mask, region_start, scale_factor))
    return dtokens


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cpu":
        return f"takes CPU tensors, not {device_type}"
    if dtype not in _DTYPES:
        return f"takes float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    return None


def _arguments(tokens: Tensor, grid: Tensor, fine_mask: Tensor, region_start: Tensor, scale_factor: int) -> tuple:
    return (
        fine_mask.data_ptr(),
        region_start.data_ptr(),
        tokens.data_ptr(),
        grid.data_ptr(),
        *fine_mask.shape,
        scale_factor,
        tokens.shape[0],
        tokens.shape[1],
        tokens.stride(0),
        tokens.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
