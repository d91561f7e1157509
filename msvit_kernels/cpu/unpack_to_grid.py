"""Copy of packed tokens to the fine grid on the CPU (csrc/cpu/unpack_to_grid.cpp).

Tokens and grid pass through memory once in each direction. The backward adds the cells of a coarse token in fp32, in
raster order.
"""

import torch
from torch import Tensor

from msvit_kernels import _C
from msvit_kernels.calls import Regions, UnpackToGrid, UnpackToGridBackward

OPTIONS: frozenset[str] = frozenset()

_DTYPES = (torch.float32, torch.bfloat16)


def unpack_to_grid_fwd(call: UnpackToGrid) -> Tensor:
    """Computes the grid [batch, dim, Hf, Wf] in the dtype of the tokens, contiguous."""
    tokens, regions = call
    height, width = regions.scales(num_prefix=0).grid_size
    grid = torch.empty(regions.fine_mask.shape[0], tokens.shape[1], height, width, dtype=tokens.dtype)
    _C.unpack_to_grid_fwd(**_fields(tokens, grid, regions))
    return grid


def unpack_to_grid_bwd(backward: UnpackToGridBackward) -> Tensor:
    """Computes the gradient of the tokens, [total_tokens, dim] in the dtype of dgrid; 0 for prefix tokens."""
    dgrid, regions, total_tokens = backward
    dtokens = torch.empty(total_tokens, dgrid.shape[1], dtype=dgrid.dtype)
    if dgrid.shape[0] == 0:
        return dtokens.zero_()
    _C.unpack_to_grid_bwd(**_fields(dtokens, dgrid, regions))
    return dtokens


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Reason why tokens of this dtype cannot run here, or None."""
    if device_type != "cpu":
        return f"runs on the CPU, got a {device_type} tensor"
    if dtype not in _DTYPES:
        return f"takes float32 and bfloat16, got {str(dtype).removeprefix('torch.')}"
    return None


def _fields(tokens: Tensor, grid: Tensor, regions: Regions) -> "_C.UnpackToGridFields":
    """The arguments of the native functions, the same in both directions."""
    batch, rows, columns = regions.fine_mask.shape
    return {
        "fine_mask": regions.fine_mask.data_ptr(),
        "region_start": regions.region_start.data_ptr(),
        "tokens": tokens.data_ptr(),
        "grid": grid.data_ptr(),
        "batch": batch,
        "rows": rows,
        "columns": columns,
        "scale_factor": regions.scale_factor,
        "total_tokens": tokens.shape[0],
        "dim": tokens.shape[1],
        "token_stride": tokens.stride(0),
        "is_bf16": tokens.dtype == torch.bfloat16,
        "num_threads": torch.get_num_threads(),
    }
