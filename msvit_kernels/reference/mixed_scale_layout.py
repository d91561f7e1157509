"""Offsets and indices of packed mixed-scale tokens, by cumulative sums and a scatter over all candidates.

    num_tokens_b = P + sum_r size_br,   region_start_br = cu_seqlens_b + P + sum_{r' < r} size_br'

size_br is s * s for a fine region and 1 for a coarse one (eq. 3 of MSViT, arXiv 2307.02321); P is num_prefix.
"""

import torch
from torch import Tensor

from msvit_kernels.calls import MixedScaleLayoutIndices, MixedScaleLayoutOffsets, Regions
from msvit_kernels.scales import region_tokens

OPTIONS: frozenset[str] = frozenset()


def mixed_scale_layout_offsets(call: MixedScaleLayoutOffsets) -> tuple[Tensor, Tensor, Tensor]:
    """Counts the tokens of each image.

    Returns:
        num_tokens: int32 [batch], active tokens of each image, prefix included.
        cu_seqlens: int32 [batch + 1], first packed row of each image, then the total.
        region_start: int32 [batch, Hc * Wc], first packed row of each region.
    """
    fine_mask, scale_factor, num_prefix = call
    region_size = region_tokens(fine_mask.flatten(1).int(), scale_factor)  # [batch, Nc]
    region_end = region_size.cumsum(1, dtype=torch.int32)
    num_tokens = num_prefix + region_size.sum(1, dtype=torch.int32)
    cu_seqlens = torch.nn.functional.pad(num_tokens.cumsum(0, dtype=torch.int32), (1, 0))
    region_start = cu_seqlens[:-1, None] + num_prefix + region_end - region_size
    return num_tokens, cu_seqlens, region_start.contiguous()


def mixed_scale_layout_fwd(call: MixedScaleLayoutIndices) -> tuple[Tensor, Tensor]:
    """Finds image and candidate of each packed row.

    Returns:
        batch_index: int32 [total_tokens], image of each row.
        token_index: int32 [total_tokens], candidate of each row: prefix, then coarse, then fine tokens.
    """
    total_tokens = call.total_tokens
    rows = candidate_rows(call.regions, call.cu_seqlens, call.num_prefix)
    batch, num_candidates = rows.shape
    # Inactive candidates go to the row total_tokens, which is cut off: the scatter needs no count from the device.
    rows = torch.where((rows >= 0) & (rows < total_tokens), rows, total_tokens).flatten().long()
    index = torch.zeros(2, total_tokens + 1, dtype=torch.int32, device=rows.device)
    images = torch.arange(batch, dtype=torch.int32, device=rows.device).repeat_interleave(num_candidates)
    candidates = torch.arange(num_candidates, dtype=torch.int32, device=rows.device).repeat(batch)
    index[0].scatter_(0, rows, images)
    index[1].scatter_(0, rows, candidates)
    return index[0, :total_tokens].clone(), index[1, :total_tokens].clone()


def candidate_rows(regions: Regions, cu_seqlens: Tensor, num_prefix: int) -> Tensor:
    """int32 [batch, num_candidates]: the packed row of each candidate, -1 for an inactive one."""
    fine_mask, region_start, s = regions
    batch, height, width = fine_mask.shape
    prefix = cu_seqlens[:-1, None] + torch.arange(num_prefix, dtype=torch.int32, device=fine_mask.device)
    coarse = torch.where(fine_mask.flatten(1), -1, region_start)
    local = torch.arange(s * s, dtype=torch.int32, device=fine_mask.device).view(s, 1, s)
    fine = region_start.view(batch, height, 1, width, 1) + local
    fine = torch.where(fine_mask.view(batch, height, 1, width, 1), fine, -1).flatten(1)
    return torch.cat([prefix, coarse, fine], dim=1)


def unsupported_reason(device_type: str, dtype: torch.dtype = torch.bool) -> str | None:
    """Always None: the reference takes any device."""
    return None
