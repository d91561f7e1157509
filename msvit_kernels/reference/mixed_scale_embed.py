"""Patch embedding of packed mixed-scale tokens: the patches of all candidates, from which the active ones are selected.

    row_t = table[token_index_t] + [t is a patch] * (weight . patch_t + bias)

Coarse patches are averaged over s x s pixels (eq. 4 and 5 of MSViT, arXiv 2307.02321). Pixels are normalised in fp32
(fp64 for fp64 weights); products run in the dtype of `weight`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from msvit_kernels.calls import MixedScaleEmbed, MixedScaleEmbedBackward, MixedScaleEmbedGradients, Patches
from msvit_kernels.reference.mixed_scale_layout import candidate_rows

OPTIONS = frozenset({"bias", "mean", "std"})


def mixed_scale_embed_fwd(call: MixedScaleEmbed) -> Tensor:
    """Computes the embedded tokens [total_tokens, dim] in the dtype of `weight`."""
    patches, table, bias = call
    weight, token_index = patches.weight, patches.token_index
    embedded = F.linear(_active_patches(patches), weight.flatten(1), bias)
    is_patch = (token_index >= patches.num_prefix)[:, None]
    return table[token_index] + embedded.masked_fill(~is_patch, 0)


def mixed_scale_embed_bwd(backward: MixedScaleEmbedBackward) -> MixedScaleEmbedGradients:
    """Computes the wanted gradients, each in the shape and dtype of its argument; None for the others."""
    dimages = dweight = dbias = dtable = None
    patches, dout = backward.patches, backward.dout
    images, weight, num_prefix = patches.images, patches.weight, patches.num_prefix
    dpatch_rows = dout.masked_fill((patches.token_index < num_prefix)[:, None], 0)
    rows = candidate_rows(patches.regions, patches.cu_seqlens, num_prefix)
    if backward.needs_images:
        dpatches = _select_rows(dpatch_rows @ weight.flatten(1), rows[:, num_prefix:])
        dimages = _fold(dpatches, images, patches.patch_size, patches.regions.scale_factor)
        if patches.std is not None:
            dimages = dimages / dimages.new_tensor(patches.std).view(3, 1, 1)
        dimages = dimages.to(images.dtype)
    if backward.needs_weight:
        dweight = (dpatch_rows.T @ _active_patches(patches)).view_as(weight)
    if backward.needs_bias:
        dbias = dpatch_rows.sum(0)
    if backward.needs_table:
        dtable = _select_rows(dout, rows).sum(0)
    return MixedScaleEmbedGradients(dimages, dweight, dbias, dtable)


def unsupported_reason(device_type: str, dtype: torch.dtype, images_dtype: torch.dtype) -> str | None:
    """Always None: the reference takes any device and any dtypes that pass validation."""
    return None


def _normalised(patches: Patches) -> Tensor:
    """Normalised pixels [batch, 3, H, W], in fp32 or, for fp64 weights, fp64."""
    images, mean, std = patches.images, patches.mean, patches.std
    pixels = images.to(torch.promote_types(patches.weight.dtype, torch.float32))
    if images.dtype == torch.uint8:
        pixels = pixels / 255
    if mean is not None and std is not None:
        pixels = (pixels - pixels.new_tensor(mean).view(3, 1, 1)) / pixels.new_tensor(std).view(3, 1, 1)
    return pixels


def _active_patches(patches: Patches) -> Tensor:
    """Patch of each row, [total_tokens, 3 * p * p], in the dtype of `weight`; an arbitrary one for prefix tokens."""
    pixels, patch_size = _normalised(patches), patches.patch_size
    coarse = F.unfold(F.avg_pool2d(pixels, patches.regions.scale_factor), patch_size, stride=patch_size)
    fine = F.unfold(pixels, patch_size, stride=patch_size)
    candidates = torch.cat([coarse, fine], dim=2)  # [batch, 3 * p * p, Nc + Nf]
    index = (patches.token_index - patches.num_prefix).clamp(min=0)
    return candidates.mT[patches.batch_index, index].to(patches.weight.dtype)


def _select_rows(values: Tensor, rows: Tensor) -> Tensor:
    """values[rows], with zeros for rows of -1."""
    return values[rows.clamp(min=0)].masked_fill((rows < 0)[..., None], 0)


def _fold(dpatches: Tensor, images: Tensor, patch_size: int, scale_factor: int) -> Tensor:
    """Adjoint of cutting out and averaging the patches: [batch, Nc + Nf, 3 * p * p] -> [batch, 3, H, W]."""
    _, _, height, width = images.shape
    num_coarse = height * width // (patch_size * scale_factor) ** 2
    coarse, fine = dpatches.mT.split([num_coarse, dpatches.shape[1] - num_coarse], dim=2)
    coarse = F.fold(coarse, (height // scale_factor, width // scale_factor), patch_size, stride=patch_size)
    coarse = coarse.repeat_interleave(scale_factor, 2).repeat_interleave(scale_factor, 3) / scale_factor**2
    return F.fold(fine, (height, width), patch_size, stride=patch_size) + coarse
