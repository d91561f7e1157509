"""Copy of packed tokens to the fine grid (appendix E.1 of MSViT, arXiv 2307.02321).

    grid[b, :, y, x] = tokens[region_start[b, r] + [r is fine] * l, :]

r is the region of cell (y, x), l is the cell's index within r in raster order: a coarse token fills its s x s cells.
"""

import torch
from torch import Tensor

from msvit_kernels.calls import Regions, UnpackToGrid, UnpackToGridBackward

OPTIONS: frozenset[str] = frozenset()


def unpack_to_grid_fwd(call: UnpackToGrid) -> Tensor:
    """Computes the grid [batch, dim, Hf, Wf] in the dtype of the tokens, contiguous."""
    rows = _cell_rows(call.regions)  # [batch, Hc, s, Wc, s]
    return call.tokens[rows.flatten(1, 2).flatten(2)].permute(0, 3, 1, 2).contiguous()


def unpack_to_grid_bwd(backward: UnpackToGridBackward) -> Tensor:
    """Computes the gradient of the tokens, [total_tokens, dim] in the dtype of dgrid; 0 for prefix tokens."""
    dgrid, (fine_mask, region_start, s), total_tokens = backward
    batch, dim, _, _ = dgrid.shape
    height, width = fine_mask.shape[1:]
    # [batch, dim, Hf, Wf] -> [batch, Hc, s, Wc, s, dim]
    cells = dgrid.view(batch, dim, height, s, width, s).permute(0, 2, 3, 4, 5, 1)
    fine = fine_mask.view(batch, height, 1, width, 1)
    rows = _cell_rows(backward.regions)
    rows = torch.where(fine, rows, total_tokens)  # cells of coarse regions go to the row that is cut off
    dtokens = torch.zeros(total_tokens + 1, dim, dtype=dgrid.dtype, device=dgrid.device)
    dtokens[rows.flatten()] = cells.reshape(-1, dim)
    coarse_rows = torch.where(fine_mask.flatten(1), total_tokens, region_start)
    dtokens[coarse_rows.flatten()] = cells.sum(dim=(2, 4)).reshape(-1, dim)
    return dtokens[:total_tokens].contiguous()


def unsupported_reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Always None: the reference takes any device and floating-point dtype."""
    return None


def _cell_rows(regions: Regions) -> Tensor:
    """int64 [batch, Hc, s, Wc, s]: the packed row of the token that covers each cell of the fine grid."""
    fine_mask, region_start, s = regions
    batch, height, width = fine_mask.shape
    local = torch.arange(s * s, device=fine_mask.device).view(s, 1, s)
    start = region_start.view(batch, height, 1, width, 1)
    return start + fine_mask.view(batch, height, 1, width, 1) * local
