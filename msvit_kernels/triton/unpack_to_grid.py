"""Copy of packed tokens to the fine grid (appendix E.1 of MSViT, arXiv 2307.02321).

    grid[b, :, y, x] = tokens[region_start[b, r] + [r is fine] * l, :]

r is the region of cell (y, x), l is the cell's index within r in raster order: a coarse token fills its s x s cells.
Tokens and grid pass through memory once in each direction. Rows outside [0, total_tokens), which wrong offsets may
name, are neither read nor written.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from msvit_kernels.calls import UnpackToGrid, UnpackToGridBackward
from msvit_kernels.triton.common import device_unsupported, dtype_unsupported, launch
from msvit_kernels.triton.numerics import rounded
from msvit_kernels.triton.regions import cell_of_place, place_of_cell

OPTIONS: frozenset[str] = frozenset()
_UNSPECIALIZED = ["num_regions", "num_blocks", "num_dim_blocks", "total_tokens", "width"]


def launch_config(dim: int) -> dict[str, int]:
    """Cells (in the backward, regions) and channels of a program, and its warps."""
    return {"BLOCK_C": 64, "BLOCK_D": min(64, max(16, triton.next_power_of_2(dim))), "num_warps": 4}


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _fwd_kernel(
    tokens_ptr, fine_mask_ptr, region_start_ptr, grid_ptr,
    num_regions, num_blocks, num_dim_blocks, total_tokens, width, dim, stride_t,
    SCALE_FACTOR: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grid[b, :, y, x] = tokens[row of the token that covers cell (y, x), :].

    One program writes BLOCK_C cells x BLOCK_D channels of one image; each element of the grid is read and
    written once, without arithmetic.
    """
    pid = tl.program_id(0)
    pid_d, pid = pid % num_dim_blocks, pid // num_dim_blocks
    pid_c, pid_b = pid % num_blocks, pid // num_blocks
    num_cells = num_regions * SCALE_FACTOR * SCALE_FACTOR
    cell = pid_c * BLOCK_C + tl.arange(0, BLOCK_C)
    cell_y, cell_x = cell // (width * SCALE_FACTOR), cell % (width * SCALE_FACTOR)
    region, local = place_of_cell(cell_y, cell_x, width, SCALE_FACTOR)
    offset = pid_b.to(tl.int64) * num_regions + region
    mask_c = cell < num_cells
    fine = tl.load(fine_mask_ptr + offset, mask=mask_c, other=0) != 0
    row = tl.load(region_start_ptr + offset, mask=mask_c, other=0) + tl.where(fine, local, 0)
    readable = mask_c & (row >= 0) & (row < total_tokens)
    offs_d = pid_d * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < dim
    token_ptrs = tokens_ptr + row.to(tl.int64)[:, None] * stride_t + offs_d[None, :]
    tile = tl.load(token_ptrs, mask=readable[:, None] & mask_d[None, :], other=0.0)
    grid_ptr += pid_b.to(tl.int64) * dim * num_cells
    grid_ptrs = grid_ptr + offs_d.to(tl.int64)[:, None] * num_cells + cell[None, :]
    tl.store(grid_ptrs, tl.trans(tile), mask=mask_d[:, None] & mask_c[None, :])


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _bwd_kernel(
    dgrid_ptr, fine_mask_ptr, region_start_ptr, dtokens_ptr,
    num_regions, num_blocks, num_dim_blocks, total_tokens, width, dim,
    SCALE_FACTOR: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dtokens[row, :] = sum of dgrid[b, :, y, x] over the cells that the row's token covers.

    One program writes the token gradients of BLOCK_R regions x BLOCK_D channels of one image and reads dgrid once. The
    s * s cells of a coarse token are added in fp32 in raster order, without atomics: deterministic.
    """
    pid = tl.program_id(0)
    pid_d, pid = pid % num_dim_blocks, pid // num_dim_blocks
    pid_r, pid_b = pid % num_blocks, pid // num_blocks
    region = pid_r * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_r = region < num_regions
    offset = pid_b.to(tl.int64) * num_regions + region
    fine = tl.load(fine_mask_ptr + offset, mask=mask_r, other=0) != 0
    start = tl.load(region_start_ptr + offset, mask=mask_r, other=-1)
    offs_d = pid_d * BLOCK_D + tl.arange(0, BLOCK_D)
    mask_d = offs_d < dim
    channel = (pid_b.to(tl.int64) * dim + offs_d) * (num_regions * SCALE_FACTOR * SCALE_FACTOR)
    total = tl.zeros([BLOCK_D, BLOCK_R], tl.float32)
    for local in range(SCALE_FACTOR * SCALE_FACTOR):
        cell = cell_of_place(region, local, width, SCALE_FACTOR)
        mask = mask_d[:, None] & mask_r[None, :]
        tile = tl.load(dgrid_ptr + channel[:, None] + cell[None, :], mask=mask, other=0.0)
        total += tile.to(tl.float32)
        row = start + local
        writable = fine & mask_r & (row >= 0) & (row < total_tokens)
        token_ptrs = dtokens_ptr + row.to(tl.int64)[:, None] * dim + offs_d[None, :]
        tl.store(token_ptrs, tl.trans(tile), mask=writable[:, None] & mask_d[None, :])
    writable = (fine == 0) & mask_r & (start >= 0) & (start < total_tokens)
    token_ptrs = dtokens_ptr + start.to(tl.int64)[:, None] * dim + offs_d[None, :]
    total = tl.trans(rounded(total, dtokens_ptr.dtype.element_ty))
    tl.store(token_ptrs, total, mask=writable[:, None] & mask_d[None, :])


def unpack_to_grid_fwd(call: UnpackToGrid) -> Tensor:
    """Computes the grid [batch, dim, Hf, Wf] in the dtype of the tokens, contiguous."""
    tokens, (fine_mask, region_start, scale_factor) = call
    total_tokens, dim = tokens.shape
    batch, height, width = fine_mask.shape
    grid = tokens.new_empty(batch, dim, *call.regions.scales(num_prefix=0).grid_size)
    config = launch_config(dim)
    num_blocks = triton.cdiv(height * width * scale_factor**2, config["BLOCK_C"])
    num_dim_blocks = triton.cdiv(dim, config["BLOCK_D"])
    launch(
        _fwd_kernel,
        (batch * num_blocks * num_dim_blocks,),
        tokens,
        (tokens, fine_mask.view(torch.uint8), region_start, grid)
        + (height * width, num_blocks, num_dim_blocks, total_tokens, width, dim, tokens.stride(0)),
        SCALE_FACTOR=scale_factor,
        **config,
    )
    return grid


def unpack_to_grid_bwd(backward: UnpackToGridBackward) -> Tensor:
    """Computes the gradient of the tokens, [total_tokens, dim] in the dtype of dgrid; 0 for prefix tokens."""
    dgrid, (fine_mask, region_start, scale_factor), total_tokens = backward
    dim = dgrid.shape[1]
    batch, height, width = fine_mask.shape
    # Zeros, because the kernel does not write the rows of prefix tokens.
    dtokens = torch.zeros(total_tokens, dim, dtype=dgrid.dtype, device=dgrid.device)
    config = launch_config(dim)
    config["BLOCK_R"] = config.pop("BLOCK_C")
    num_blocks = triton.cdiv(height * width, config["BLOCK_R"])
    num_dim_blocks = triton.cdiv(dim, config["BLOCK_D"])
    launch(
        _bwd_kernel,
        (batch * num_blocks * num_dim_blocks,),
        dgrid,
        (dgrid, fine_mask.view(torch.uint8), region_start, dtokens)
        + (height * width, num_blocks, num_dim_blocks, total_tokens, width, dim),
        SCALE_FACTOR=scale_factor,
        **config,
    )
    return dtokens


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Reason why tokens of this dtype cannot run here, or None."""
    return device_unsupported(device_type) or dtype_unsupported(dtype)
