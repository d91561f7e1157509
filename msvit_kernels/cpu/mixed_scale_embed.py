"""Patch embedding of packed mixed-scale tokens on the CPU (csrc/cpu/mixed_scale_embed*.cpp).

Blocks of packed rows read their patches straight from the images, 48 rows and one channel at a time, into a buffer of
each thread; register tiles multiply it with the weight in place. fp32 accumulation (bf16 weights: products of bf16
pairs where the CPU has them). The bits do not depend on the number of threads.
"""

import torch
from torch import Tensor

from msvit_kernels import _C
from msvit_kernels.calls import MixedScaleEmbed, MixedScaleEmbedBackward, MixedScaleEmbedGradients, Patches

OPTIONS = frozenset({"bias", "mean", "std"})

_PIXEL_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}
_DTYPES = (torch.float32, torch.bfloat16)


def mixed_scale_embed_fwd(call: MixedScaleEmbed) -> Tensor:
    patches, table, bias = call
    weight = patches.weight
    dim = weight.shape[0]
    out = torch.empty(patches.token_index.shape[0], dim, dtype=weight.dtype)
    _C.mixed_scale_embed_fwd(
        *_patch_source(patches),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        table.data_ptr(),
        out.data_ptr(),
        dim,
        weight.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


def mixed_scale_embed_bwd(backward: MixedScaleEmbedBackward) -> MixedScaleEmbedGradients:
    patches, weight, regions = backward.patches, backward.patches.weight, backward.patches.regions
    dim, num_candidates = weight.shape[0], regions.scales(patches.num_prefix).num_candidates
    gradients = MixedScaleEmbedGradients(
        images=torch.empty_like(patches.images) if backward.needs_images else None,
        weight=torch.empty_like(weight) if backward.needs_weight else None,
        bias=weight.new_empty(dim) if backward.needs_bias else None,
        table=weight.new_empty(num_candidates, dim) if backward.needs_table else None,
    )
    _C.mixed_scale_embed_bwd(
        *_patch_source(patches),
        backward.dout.data_ptr(),
        weight.data_ptr(),
        regions.fine_mask.data_ptr(),
        regions.region_start.data_ptr(),
        patches.cu_seqlens.data_ptr(),
        *(0 if gradient is None else gradient.data_ptr() for gradient in gradients),
        dim,
        weight.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return gradients


def unsupported_reason(device_type: str, dtype: torch.dtype, images_dtype: torch.dtype) -> str | None:
    if device_type != "cpu":
        return f"takes CPU tensors, not {device_type}"
    if dtype not in _DTYPES:
        return f"takes weights of float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if images_dtype not in _PIXEL_TYPES:
        return f"takes images of uint8, float32, bfloat16 and float16, not {str(images_dtype).removeprefix('torch.')}"
    return None


def _patch_source(patches: Patches) -> tuple:
    images, mean, std = patches.images, patches.mean, patches.std
    batch, _, height, width = images.shape
    return (
        images.data_ptr(),
        patches.batch_index.data_ptr(),
        patches.token_index.data_ptr(),
        batch,
        height,
        width,
        patches.token_index.shape[0],
        patches.patch_size,
        patches.regions.scale_factor,
        patches.num_prefix,
        _PIXEL_TYPES[images.dtype],
        (0.0, 0.0, 0.0) if mean is None else tuple(mean),
        (1.0, 1.0, 1.0) if std is None else tuple(std),
    )
