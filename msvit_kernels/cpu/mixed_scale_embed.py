"""Patch embedding of packed mixed-scale tokens on the CPU (csrc/cpu/mixed_scale_embed*.cpp).

Blocks of packed rows read their patches straight from the images, 48 rows and one channel at a time, into a buffer of
each thread; register tiles multiply it with the weight in place. fp32 accumulation (bf16 weights: products of bf16
pairs where the CPU has them). The bits do not depend on the number of threads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from msvit_kernels import _C

_PIXEL_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}
_DTYPES = (torch.float32, torch.bfloat16)


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
    dim = weight.shape[0]
    out = torch.empty(token_index.shape[0], dim, dtype=weight.dtype)
    _C.mixed_scale_embed_fwd(
        *_patch_source(images, batch_index, token_index, patch_size, scale_factor, num_prefix, mean, std),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        table.data_ptr(),
        out.data_ptr(),
        dim,
        weight.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out


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
    dim = weight.shape[0]
    num_candidates = num_prefix + region_start.shape[1] * (1 + scale_factor**2)
    dimages = torch.empty_like(images) if needs_images else None
    dweight = torch.empty_like(weight) if needs_weight else None
    dbias = weight.new_empty(dim) if needs_bias else None
    dtable = weight.new_empty(num_candidates, dim) if needs_table else None
    _C.mixed_scale_embed_bwd(
        *_patch_source(images, batch_index, token_index, patch_size, scale_factor, num_prefix, mean, std),
        dout.data_ptr(),
        weight.data_ptr(),
        fine_mask.data_ptr(),
        region_start.data_ptr(),
        cu_seqlens.data_ptr(),
        *(0 if gradient is None else gradient.data_ptr() for gradient in (dimages, dweight, dbias, dtable)),
        dim,
        weight.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return dimages, dweight, dbias, dtable


def unsupported_reason(device_type: str, dtype: torch.dtype, images_dtype: torch.dtype) -> str | None:
    if device_type != "cpu":
        return f"takes CPU tensors, not {device_type}"
    if dtype not in _DTYPES:
        return f"takes weights of float32 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if images_dtype not in _PIXEL_TYPES:
        return f"takes images of uint8, float32, bfloat16 and float16, not {str(images_dtype).removeprefix('torch.')}"
    return None


def _patch_source(
    images: Tensor,
    batch_index: Tensor,
    token_index: Tensor,
    patch_size: int,
    scale_factor: int,
    num_prefix: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple:
    batch, _, height, width = images.shape
    return (
        images.data_ptr(),
        batch_index.data_ptr(),
        token_index.data_ptr(),
        batch,
        height,
        width,
        token_index.shape[0],
        patch_size,
        scale_factor,
        num_prefix,
        _PIXEL_TYPES[images.dtype],
        (0.0, 0.0, 0.0) if mean is None else tuple(mean),
        (1.0, 1.0, 1.0) if std is None else tuple(std),
    )
