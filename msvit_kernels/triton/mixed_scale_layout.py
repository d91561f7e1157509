"""Offsets and indices of packed mixed-scale tokens: a scan over the regions of each image, then a fill of the rows.

    num_tokens_b = P + sum_r size_br,   region_start_br = cu_seqlens_b + P + sum_{r' < r} size_br'

size_br is s * s for a fine region and 1 for a coarse one (eq. 3 of MSViT, arXiv 2307.02321); P is num_prefix. Between
the two kernels torch computes cu_seqlens, a cumulative sum of [batch] integers. All values are exact integers.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from msvit_kernels.calls import MixedScaleLayoutIndices, MixedScaleLayoutOffsets
from msvit_kernels.triton.common import device_unsupported, launch
from msvit_kernels.triton.regions import cell_of_place, region_rows

OPTIONS: frozenset[str] = frozenset()
_UNSPECIALIZED = ["num_regions", "num_blocks", "total_tokens", "num_prefix", "width"]


def launch_config(num_regions: int) -> dict[str, int]:
    """Regions of a step of the scan, the most that a program of the fill takes, and warps of both."""
    return {"BLOCK_R": min(1024, max(32, triton.next_power_of_2(num_regions))), "num_warps": 4}


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _scan_kernel(
    fine_mask_ptr, num_tokens_ptr, region_start_ptr,
    num_regions, num_prefix,
    SCALE_FACTOR: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """num_tokens_b, and region_start_br without cu_seqlens_b.

    One program scans all regions of one image, BLOCK_R at a time, with int32
    sums: one read of fine_mask, one write of region_start.
    """
    pid_b = tl.program_id(0)
    fine_mask_ptr += pid_b.to(tl.int64) * num_regions
    region_start_ptr += pid_b.to(tl.int64) * num_regions
    num_tokens = num_prefix
    for start_r in range(0, num_regions, BLOCK_R):
        offs_r = start_r + tl.arange(0, BLOCK_R)
        mask_r = offs_r < num_regions
        fine = tl.load(fine_mask_ptr + offs_r, mask=mask_r, other=0) != 0
        size = tl.where(mask_r, region_rows(fine, SCALE_FACTOR), 0)
        tl.store(region_start_ptr + offs_r, num_tokens + tl.cumsum(size, 0) - size, mask=mask_r)
        num_tokens += tl.sum(size, 0)
    tl.store(num_tokens_ptr + pid_b, num_tokens)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _fill_kernel(
    fine_mask_ptr, cu_seqlens_ptr, region_start_ptr, batch_index_ptr, token_index_ptr,
    num_regions, num_blocks, total_tokens, num_prefix, width,
    SCALE_FACTOR: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """batch_index and token_index of each row: row region_start_br + l is token l of region r.

    One program writes the rows of BLOCK_R regions of one image; the first program of an image writes its prefix rows
    too, without sums. Each row is written once; rows outside [0, total_tokens), which wrong offsets may name, are not.
    """
    pid = tl.program_id(0)
    pid_b, pid_r = pid // num_blocks, pid % num_blocks
    region = pid_r * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_r = region < num_regions
    offset = pid_b.to(tl.int64) * num_regions + region
    fine = (tl.load(fine_mask_ptr + offset, mask=mask_r, other=0) != 0)[:, None]
    start = tl.load(region_start_ptr + offset, mask=mask_r, other=-1)[:, None]
    local = tl.arange(0, BLOCK_S)[None, :]  # index of the token within its region
    fine_index = num_prefix + num_regions + cell_of_place(region[:, None], local, width, SCALE_FACTOR)
    token_index = tl.where(fine, fine_index, num_prefix + region[:, None])
    row = start + local
    active = mask_r[:, None] & (local < region_rows(fine, SCALE_FACTOR))
    active = active & (row >= 0) & (row < total_tokens)
    tl.store(token_index_ptr + row, token_index, mask=active)
    tl.store(batch_index_ptr + row, tl.zeros_like(row) + pid_b, mask=active)
    if pid_r == 0:
        first = tl.load(cu_seqlens_ptr + pid_b)
        for start_p in range(0, num_prefix, BLOCK_R):
            prefix = start_p + tl.arange(0, BLOCK_R)
            prefix_row = first + prefix
            writable = (prefix < num_prefix) & (prefix_row >= 0) & (prefix_row < total_tokens)
            tl.store(token_index_ptr + prefix_row, prefix, mask=writable)
            tl.store(batch_index_ptr + prefix_row, tl.zeros_like(prefix_row) + pid_b, mask=writable)


def mixed_scale_layout_offsets(call: MixedScaleLayoutOffsets) -> tuple[Tensor, Tensor, Tensor]:
    """Computes num_tokens [batch], cu_seqlens [batch + 1] and region_start [batch, Hc * Wc], all int32."""
    fine_mask, scale_factor, num_prefix = call
    batch, height, width = fine_mask.shape
    num_tokens = torch.empty(batch, dtype=torch.int32, device=fine_mask.device)
    region_start = torch.empty(batch, height * width, dtype=torch.int32, device=fine_mask.device)
    launch(
        _scan_kernel,
        (batch,),
        fine_mask,
        (fine_mask.view(torch.uint8), num_tokens, region_start, height * width, num_prefix),
        SCALE_FACTOR=scale_factor,
        **launch_config(height * width),
    )
    cu_seqlens = F.pad(num_tokens.cumsum(0, dtype=torch.int32), (1, 0))
    region_start += cu_seqlens[:-1, None]
    return num_tokens, cu_seqlens, region_start


def mixed_scale_layout_fwd(call: MixedScaleLayoutIndices) -> tuple[Tensor, Tensor]:
    """Computes batch_index and token_index, both int32 [total_tokens]; rows that no region has hold zeros."""
    (fine_mask, region_start, scale_factor), cu_seqlens, total_tokens, num_prefix = call
    batch, height, width = fine_mask.shape
    batch_index, token_index = (torch.zeros(total_tokens, dtype=torch.int32, device=fine_mask.device) for _ in range(2))
    config = launch_config(height * width)
    block_s = triton.next_power_of_2(scale_factor**2)
    config["BLOCK_R"] = max(16, min(config["BLOCK_R"], 1024 // block_s))
    num_blocks = triton.cdiv(height * width, config["BLOCK_R"])
    launch(
        _fill_kernel,
        (batch * num_blocks,),
        fine_mask,
        (fine_mask.view(torch.uint8), cu_seqlens, region_start, batch_index, token_index)
        + (height * width, num_blocks, total_tokens, num_prefix, width),
        SCALE_FACTOR=scale_factor,
        BLOCK_S=block_s,
        **config,
    )
    return batch_index, token_index


def unsupported_reason(device_type: str, dtype: torch.dtype = torch.bool) -> str | None:
    """Reason why a mask on this device cannot run here, or None."""
    return device_unsupported(device_type)
