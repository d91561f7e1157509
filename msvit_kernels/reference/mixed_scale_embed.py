"""Patch embedding of packed mixed-scale tokens: all candidates are cut out first, then the active ones selected.

    row_t = table[token_index_t] + [t is a patch] * (weight . patch_t + bias)

Coarse patches are area averages over s x s pixels (eq. 5 of the MSViT paper). Products run in the dtype of `weight`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from msvit_kernels.reference.mixed_scale_layout import candidate_rows


def mixed_scale_embed_fwd(
    images: Tensor,
    batch_index: Tensor,
    token_index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: Tensor,
    patch_size: int,
    scale_factor: int,
    num_prefix: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Tensor:
    pixels = _normalised(images, weight.dtype, mean, std)
    patches = _active_patches(pixels, batch_index, token_index, patch_size, scale_factor, num_prefix)
    embedded = F.linear(patches.to(weight.dtype), weight.flatten(1), bias)
    is_patch = (token_index >= num_prefix)[:, None]
    return table[token_index] + embedded.masked_fill(~is_patch, 0)


def mixed_scale_embed_bwd(
    dout: Tensor,
    images: Tensor,
    fine_mask: Tensor,
    region_start: Tensor,
    cu_seqlens: Tensor,
    batch_index: Tensor,
    token_index: Tensor,
    weight: Tensor,
    patch_size: int,
    scale_factor: int,
    num_prefix: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    needs_images: bool,
    needs_weight: bool,
    needs_bias: bool,
    needs_table: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    dimages = dweight = dbias = dtable = None
    dpatch_rows = dout.masked_fill((token_index < num_prefix)[:, None], 0)
    rows = candidate_rows(fine_mask, cu_seqlens, region_start, scale_factor, num_prefix)
    if needs_images:
        dpatches = _select_rows(dpatch_rows @ weight.flatten(1), rows[:, num_prefix:])
        dimages = _fold(dpatches, images, patch_size, scale_factor)
        if std is not None:
            dimages = dimages / dimages.new_tensor(std).view(3, 1, 1)
        dimages = dimages.to(images.dtype)
    if needs_weight:
        pixels = _normalised(images, weight.dtype, mean, std)
        patches = _active_patches(pixels, batch_index, token_index, patch_size, scale_factor, num_prefix)
        dweight = (dpatch_rows.T @ patches.to(weight.dtype)).view_as(weight)
    if needs_bias:
        dbias = dpatch_rows.sum(0)
    if needs_table:
        dtable = _select_rows(dout, rows).sum(0)
    return dimages, dweight, dbias, dtable


def unsupported_reason(device_type: str, dtype: torch.dtype, images_dtype: torch.dtype) -> str | None:
    return None


def _normalised(
    images: Tensor, dtype: torch.dtype, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Tensor:
    pixels = images.to(torch.promote_types(dtype, torch.float32))
    if images.dtype == torch.uint8:
        pixels = pixels / 255
    if mean is not None and std is not None:
        pixels = (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
    return pixels


def _active_patches(
    pixels: Tensor, batch_index: Tensor, token_index: Tensor, patch_size: int, scale_factor: int, num_prefix: int
) -> Tensor:
    """[total_tokens, 3 * p * p] averaged pixels of each row; those of some patch for a prefix token."""
    coarse = F.unfold(F.avg_pool2d(pixels, scale_factor), patch_size, stride=patch_size)
    fine = F.unfold(pixels, patch_size, stride=patch_size)
    candidates = torch.cat([coarse, fine], dim=2)  # [batch, 3 * p * p, Nc + Nf]
    return candidates.mT[batch_index, (token_index - num_prefix).clamp(min=0)]


def _select_rows(values: Tensor, rows: Tensor) -> Tensor:
    """values[rows], with zeros where a row is -1."""
    return values[rows.clamp(min=0)].masked_fill((rows < 0)[..., None], 0)


def _fold(dpatches: Tensor, images: Tensor, patch_size: int, scale_factor: int) -> Tensor:
    """Adjoint of cutting out the patches: [batch, Nc + Nf, 3 * p * p] -> [batch, 3, H, W]."""
    _, _, height, width = images.shape
    num_coarse = height * width // (patch_size * scale_factor) ** 2
    coarse, fine = dpatches.mT.split([num_coarse, dpatches.shape[1] - num_coarse], dim=2)
    coarse = F.fold(coarse, (height // scale_factor, width // scale_factor), patch_size, stride=patch_size)
    coarse = coarse.repeat_interleave(scale_factor, 2).repeat_interleave(scale_factor, 3) / scale_factor**2
    return F.fold(fine, (height, width), patch_size, stride=patch_size) + coarse
