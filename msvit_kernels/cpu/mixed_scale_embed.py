"""Patch embedding of packed mixed-scale tokens on the CPU (csrc/cpu/mixed_scale_embed*.cpp).

A thread copies the patches of 48 packed rows, one channel at a time, from the images to a buffer of its own, and
multiplies the buffer by the weight in register tiles. Sums are fp32 (for bf16 weights, the CPU's dot products of bf16
pairs if it has them). The results have the same bits for any number of threads.
"""

import torch
from torch import Tensor

from msvit_kernels import _C
from msvit_kernels.calls import MixedScaleEmbed, MixedScaleEmbedBackward, MixedScaleEmbedGradients, Patches

OPTIONS = frozenset({"bias", "mean", "std"})

_PIXEL_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}
_DTYPES = (torch.float32, torch.bfloat16)


def mixed_scale_embed_fwd(call: MixedScaleEmbed) -> Tensor:
    """Computes the embedded tokens [total_tokens, dim] in the dtype of `weight`."""
    patches, table, bias = call
    out = torch.empty(patches.token_index.shape[0], patches.weight.shape[0], dtype=patches.weight.dtype)
    _C.mixed_scale_embed_fwd(
        **_inputs(patches),
        bias=0 if bias is None else bias.data_ptr(),
        table=table.data_ptr(),
        out=out.data_ptr(),
    )
    return out


def mixed_scale_embed_bwd(backward: MixedScaleEmbedBackward) -> MixedScaleEmbedGradients:
    """Computes the wanted gradients, each in the shape and dtype of its argument; None for the others."""
    patches, weight, regions = backward.patches, backward.patches.weight, backward.patches.regions
    dim, num_candidates = weight.shape[0], regions.scales(patches.num_prefix).num_candidates
    gradients = MixedScaleEmbedGradients(
        images=torch.empty_like(patches.images) if backward.needs_images else None,
        weight=torch.empty_like(weight) if backward.needs_weight else None,
        bias=weight.new_empty(dim) if backward.needs_bias else None,
        table=weight.new_empty(num_candidates, dim) if backward.needs_table else None,
    )
    dimages, dweight, dbias, dtable = (0 if gradient is None else gradient.data_ptr() for gradient in gradients)
    _C.mixed_scale_embed_bwd(
        **_inputs(patches),
        dout=backward.dout.data_ptr(),
        fine_mask=regions.fine_mask.data_ptr(),
        region_start=regions.region_start.data_ptr(),
        cu_seqlens=patches.cu_seqlens.data_ptr(),
        dimages=dimages,
        dweight=dweight,
        dbias=dbias,
        dtable=dtable,
    )
    return gradients


def unsupported_reason(device_type: str, dtype: torch.dtype, images_dtype: torch.dtype) -> str | None:
    """Reason why a weight of `dtype` with images of `images_dtype` cannot run here, or None."""
    if device_type != "cpu":
        return f"runs on the CPU, got a {device_type} tensor"
    if dtype not in _DTYPES:
        return f"takes a weight of float32 or bfloat16, got {str(dtype).removeprefix('torch.')}"
    if images_dtype not in _PIXEL_TYPES:
        return f"takes images of uint8, float32, bfloat16 or float16, got {str(images_dtype).removeprefix('torch.')}"
    return None


def _inputs(patches: Patches) -> "_C.MixedScaleEmbedInputs":
    """The arguments that forward and backward share (csrc/cpu/mixed_scale_embed.h)."""
    images, weight, mean, std = patches.images, patches.weight, patches.mean, patches.std
    batch, _, height, width = images.shape
    return {
        "images": images.data_ptr(),
        "batch_index": patches.batch_index.data_ptr(),
        "token_index": patches.token_index.data_ptr(),
        "batch": batch,
        "height": height,
        "width": width,
        "total_tokens": patches.token_index.shape[0],
        "patch_size": patches.patch_size,
        "scale_factor": patches.regions.scale_factor,
        "num_prefix": patches.num_prefix,
        "pixel_type": _PIXEL_TYPES[images.dtype],
        "mean": (0.0, 0.0, 0.0) if mean is None else (mean[0], mean[1], mean[2]),
        "std": (1.0, 1.0, 1.0) if std is None else (std[0], std[1], std[2]),
        "weight": weight.data_ptr(),
        "dim": weight.shape[0],
        "is_bf16": weight.dtype == torch.bfloat16,
        "num_threads": torch.get_num_threads(),
    }
