"""Patch embedding of packed mixed-scale tokens (eq. 4 and 5 of MSViT, arXiv 2307.02321), straight from the images.

    row_t = table[token_index_t] + [t is a patch] * (weight . patch_t + bias)

Small calls and fp32 calls run as one kernel, a matrix product that gathers its left operand. Calls in 16 bits with at
least FUSED_TOKENS tokens write the patches of the active tokens, [total_tokens, 3 * p * p], and multiply them with
cuBLAS. The backward writes these patches for dweight = dout^T . patches and computes both of its products with
torch.mm; kernels of this file copy dout . weight to the pixels and sum the table gradient over images. Sums are fp32
and have a fixed order: same inputs, same bits. Indices are clamped, so that wrong ones address nothing outside of the
tensors.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from msvit_kernels.calls import MixedScaleEmbed, MixedScaleEmbedBackward, MixedScaleEmbedGradients, Patches
from msvit_kernels.triton.common import (
    FLOAT_DTYPES,
    INTERPRETER_ARCH,
    arch_of,
    device_unsupported,
    dtype_unsupported,
    launch,
)
from msvit_kernels.triton.numerics import dot, rounded
from msvit_kernels.triton.patches import load_patches, patch_origin
from msvit_kernels.triton.regions import place_of_cell

OPTIONS = frozenset({"bias", "mean", "std"})
# Fewer tokens are embedded by one kernel. For 25,000 tokens of a ViT-S in bf16 an H100 took 194 us in one kernel and
# 108 us in two steps (bench/results/cuda-nvidia-h100-80gb-hbm3/token_operators.csv): the kernel converts each pixel
# once per BLOCK_N channels, and its matrix product is slower than cuBLAS.
FUSED_TOKENS = 4096
_UNSPECIALIZED = ["total_tokens", "batch", "num_prefix", "num_coarse", "num_fine", "num_blocks", "num_candidates"]


def launch_config(dim: int, patch_size: int, dtype: torch.dtype, arch: int) -> dict[str, int]:
    """Tiles and warps of the forward; the interpreter takes large tiles, because its cost is per operation."""
    block_k = max(16, triton.next_power_of_2(patch_size**2))
    block_n = max(16, triton.next_power_of_2(dim))
    if arch == INTERPRETER_ARCH:
        return {"BLOCK_M": 64, "BLOCK_N": min(256, block_n), "BLOCK_K": min(256, block_k)}
    if dtype == torch.float32:
        # Products without tensor cores keep their operands in registers.
        blocks, num_warps = (32, min(64, block_n), min(32, block_k)), 4
    else:
        # Wide tiles of pixels take registers, and more for addresses if the patch size is not a power of two.
        widest = 16 if patch_size & (patch_size - 1) else 64 if arch >= 90 else 32
        blocks, num_warps = (64, min(128, block_n), min(widest, block_k)), 8
    names = "BLOCK_M", "BLOCK_N", "BLOCK_K"
    return dict(zip(names, blocks, strict=True)) | {"num_warps": num_warps, "num_stages": 2}


@triton.jit
def _patch_rows(
    images_ptr, batch_index_ptr, token_index_ptr, rows, total_tokens, batch, num_prefix, num_coarse, num_fine,
    height, width,
    PATCH_SIZE: tl.constexpr, SCALE_FACTOR: tl.constexpr,
):  # fmt: skip
    """(pointer to the image, y, x, whether coarse, whether a patch, candidate) of each row, in the shape of `rows`."""
    mask = rows < total_tokens
    image = tl.minimum(tl.maximum(tl.load(batch_index_ptr + rows, mask=mask, other=0), 0), batch - 1)
    token = tl.load(token_index_ptr + rows, mask=mask, other=0)
    token = tl.minimum(tl.maximum(token, 0), num_prefix + num_coarse + num_fine - 1)
    index = tl.maximum(token - num_prefix, 0)
    y, x, coarse = patch_origin(index, num_coarse, width // PATCH_SIZE, PATCH_SIZE, SCALE_FACTOR)
    image_ptrs = images_ptr + image.to(tl.int64) * (3 * height * width)
    return image_ptrs, y, x, coarse, mask & (token >= num_prefix), token


@triton.jit
def _of_channel(channel, red, green, blue):
    """The scalar that belongs to channel 0, 1 or 2."""
    return tl.where(channel == 0, red, tl.where(channel == 1, green, blue))


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _fwd_kernel(
    images_ptr, batch_index_ptr, token_index_ptr, weight_ptr, bias_ptr, table_ptr, out_ptr,
    total_tokens, batch, num_prefix, num_coarse, num_fine, height, width, dim, num_blocks,
    scale_r, scale_g, scale_b, shift_r, shift_g, shift_b,
    HAS_BIAS: tl.constexpr, PATCH_SIZE: tl.constexpr, SCALE_FACTOR: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """row_t = table[token_index_t] + [t is a patch] * (weight . patch_t + bias).

    One program computes BLOCK_M rows x BLOCK_N channels in one pass over the 3 * p * p pixels of its patches, BLOCK_K
    at a time: it averages, normalises and rounds them to the dtype of `weight`. Sums are fp32 and have one order; each
    row is written once: deterministic.
    """
    pid = tl.program_id(0)
    pid_m, pid_n = pid // num_blocks, pid % num_blocks
    rows = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    image_ptrs, y, x, coarse, is_patch, token = _patch_rows(
        images_ptr, batch_index_ptr, token_index_ptr, rows, total_tokens, batch, num_prefix, num_coarse, num_fine,
        height, width, PATCH_SIZE, SCALE_FACTOR,
    )  # fmt: skip
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < dim
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for channel in range(3):
        scale = _of_channel(channel, scale_r, scale_g, scale_b)
        shift = _of_channel(channel, shift_r, shift_g, shift_b)
        for start_k in range(0, PATCH_SIZE * PATCH_SIZE, BLOCK_K):
            offs_k = start_k + tl.arange(0, BLOCK_K)
            mask_k = offs_k < PATCH_SIZE * PATCH_SIZE
            patches = load_patches(
                image_ptrs, y, x, coarse, is_patch, start_k, channel, height, width, scale, shift,
                PATCH_SIZE, SCALE_FACTOR, BLOCK_M, BLOCK_K,
            )  # fmt: skip
            weight_ptrs = weight_ptr + offs_n[:, None] * (3 * PATCH_SIZE * PATCH_SIZE)
            weight_ptrs += channel * (PATCH_SIZE * PATCH_SIZE) + offs_k[None, :]
            weight = tl.load(weight_ptrs, mask=mask_n[:, None] & mask_k[None, :], other=0.0)
            acc = dot(rounded(patches, weight.dtype), tl.trans(weight), acc)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
        acc += tl.where(is_patch[:, None], bias[None, :], 0.0)
    mask = (rows < total_tokens)[:, None] & mask_n[None, :]
    acc += tl.load(table_ptr + token[:, None] * dim + offs_n[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows[:, None] * dim + offs_n[None, :], rounded(acc, out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _gather_kernel(
    images_ptr, batch_index_ptr, token_index_ptr, patches_ptr,
    total_tokens, batch, num_prefix, num_coarse, num_fine, height, width, num_blocks,
    scale_r, scale_g, scale_b, shift_r, shift_g, shift_b,
    PATCH_SIZE: tl.constexpr, SCALE_FACTOR: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """patches[t, :] = pixels of patch_t, averaged, normalised and rounded; 0 for prefix tokens.

    One program writes BLOCK_K pixels of one channel of BLOCK_M rows. Averages are fp32; each element is written once:
    deterministic.
    """
    pid = tl.program_id(0)
    channel, pid_k, pid_m = pid % 3, (pid // 3) % num_blocks, pid // 3 // num_blocks
    rows = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    image_ptrs, y, x, coarse, is_patch, _ = _patch_rows(
        images_ptr, batch_index_ptr, token_index_ptr, rows, total_tokens, batch, num_prefix, num_coarse, num_fine,
        height, width, PATCH_SIZE, SCALE_FACTOR,
    )  # fmt: skip
    offs_k = pid_k * BLOCK_K + tl.arange(0, BLOCK_K)
    scale = _of_channel(channel, scale_r, scale_g, scale_b)
    shift = _of_channel(channel, shift_r, shift_g, shift_b)
    patches = load_patches(
        image_ptrs, y, x, coarse, is_patch, pid_k * BLOCK_K, channel, height, width, scale, shift,
        PATCH_SIZE, SCALE_FACTOR, BLOCK_M, BLOCK_K,
    )  # fmt: skip
    ptrs = patches_ptr + rows[:, None] * (3 * PATCH_SIZE * PATCH_SIZE)
    ptrs += channel * (PATCH_SIZE * PATCH_SIZE) + offs_k[None, :]
    mask = (rows < total_tokens)[:, None] & (offs_k < PATCH_SIZE * PATCH_SIZE)[None, :]
    tl.store(ptrs, rounded(patches, patches_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _dtable_kernel(
    dout_ptr, fine_mask_ptr, region_start_ptr, cu_seqlens_ptr, partial_ptr,
    total_tokens, batch, num_prefix, num_coarse, num_candidates, grid_width, dim, num_blocks,
    SCALE_FACTOR: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dtable_c = sum over the images in which candidate c is active of dout[row of c in that image, :].

    One program sums one candidate over BLOCK_B images x BLOCK_N channels in fp32; the launcher adds these partial sums
    [chunks of images, num_candidates, dim]. Each row of dout is read once, and sums have one order: deterministic.
    """
    pid = tl.program_id(0)
    pid_n, pid = pid % num_blocks, pid // num_blocks
    candidate, pid_b = pid % num_candidates, pid // num_candidates
    image = pid_b * BLOCK_B + tl.arange(0, BLOCK_B)
    active = image < batch
    index = candidate - num_prefix
    if index < 0:
        row = tl.load(cu_seqlens_ptr + image, mask=active, other=-1) + candidate
    else:
        wants_fine = index >= num_coarse
        cell = index - num_coarse
        cell_y, cell_x = cell // grid_width, cell % grid_width
        region, local = place_of_cell(cell_y, cell_x, grid_width // SCALE_FACTOR, SCALE_FACTOR)
        offset = image.to(tl.int64) * num_coarse + tl.where(wants_fine, region, index)
        fine = tl.load(fine_mask_ptr + offset, mask=active, other=0) != 0
        row = tl.load(region_start_ptr + offset, mask=active, other=-1)
        row += tl.where(wants_fine, local, 0)
        active = active & (fine == wants_fine)
    active = active & (row >= 0) & (row < total_tokens)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < dim
    ptrs = dout_ptr + row.to(tl.int64)[:, None] * dim + offs_n[None, :]
    dout = tl.load(ptrs, mask=active[:, None] & mask_n[None, :], other=0.0).to(tl.float32)
    partial_ptr += (pid_b.to(tl.int64) * num_candidates + candidate) * dim
    tl.store(partial_ptr + offs_n, tl.sum(dout, 0), mask=mask_n)


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _dimages_kernel(
    dpatches_ptr, fine_mask_ptr, region_start_ptr, dimages_ptr,
    total_tokens, num_coarse, height, width, num_blocks, scale_r, scale_g, scale_b,
    PATCH_SIZE: tl.constexpr, SCALE_FACTOR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dimages = dpatch of the only active patch that covers a pixel, / std, and / s**2 if the patch is coarse.

    One program writes BLOCK pixels of one image in all three channels. Nothing is summed and each pixel is written
    once: deterministic.
    """
    pid = tl.program_id(0)
    pid_b, pid_p = pid // num_blocks, pid % num_blocks
    pixel = pid_p * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < height * width
    y, x = pixel // width, pixel % width
    COARSE: tl.constexpr = PATCH_SIZE * SCALE_FACTOR
    region, local = place_of_cell(y // PATCH_SIZE, x // PATCH_SIZE, width // COARSE, SCALE_FACTOR)
    offset = pid_b.to(tl.int64) * num_coarse + region
    fine = tl.load(fine_mask_ptr + offset, mask=mask, other=0) != 0
    row = tl.load(region_start_ptr + offset, mask=mask, other=-1) + tl.where(fine, local, 0)
    patch_y = tl.where(fine, y % PATCH_SIZE, y % COARSE // SCALE_FACTOR)
    patch_x = tl.where(fine, x % PATCH_SIZE, x % COARSE // SCALE_FACTOR)
    share = tl.where(fine, 1.0, 1.0 / (SCALE_FACTOR * SCALE_FACTOR))
    readable = mask & (row >= 0) & (row < total_tokens)
    dpatches_ptr += row.to(tl.int64) * (3 * PATCH_SIZE * PATCH_SIZE) + patch_y * PATCH_SIZE + patch_x
    dimages_ptr += pid_b.to(tl.int64) * (3 * height * width) + pixel
    for channel in range(3):
        dpatch = tl.load(dpatches_ptr + channel * (PATCH_SIZE * PATCH_SIZE), mask=readable, other=0.0).to(tl.float32)
        dimage = dpatch * share * _of_channel(channel, scale_r, scale_g, scale_b)
        tl.store(dimages_ptr + channel * height * width, rounded(dimage, dimages_ptr.dtype.element_ty), mask=mask)


def mixed_scale_embed_fwd(call: MixedScaleEmbed) -> Tensor:
    """Computes the embedded tokens [total_tokens, dim] in the dtype of `weight`."""
    patches, table, bias = call
    images, token_index, weight = patches.images, patches.token_index, patches.weight
    total_tokens, dim = token_index.shape[0], weight.shape[0]
    if weight.dtype != torch.float32 and total_tokens >= FUSED_TOKENS:
        return torch.addmm(_added_rows(call), _gather(patches), weight.flatten(1).T)
    out = torch.empty(total_tokens, dim, dtype=weight.dtype, device=images.device)
    config = launch_config(dim, patches.patch_size, weight.dtype, arch_of(images))
    num_blocks = triton.cdiv(dim, config["BLOCK_N"])
    launch(
        _fwd_kernel,
        (triton.cdiv(total_tokens, config["BLOCK_M"]) * num_blocks,),
        images,
        (images, patches.batch_index, token_index, weight, bias, table, out)
        + (*_sizes(patches), dim, num_blocks, *_normalisation(patches)),
        HAS_BIAS=bias is not None,
        PATCH_SIZE=patches.patch_size,
        SCALE_FACTOR=patches.regions.scale_factor,
        **config,
    )
    return out


def _added_rows(call: MixedScaleEmbed) -> Tensor:
    """Row of the table for each token, plus the bias except for prefix tokens: [total_tokens, dim]."""
    (patches, table, bias), num_prefix = call, call.patches.num_prefix
    if bias is not None:
        table = torch.cat([table[:num_prefix], table[num_prefix:] + bias])
    return table.index_select(0, patches.token_index.clamp(0, table.shape[0] - 1))


def mixed_scale_embed_bwd(backward: MixedScaleEmbedBackward) -> MixedScaleEmbedGradients:
    """Computes the wanted gradients, each in the shape and dtype of its argument; None for the others."""
    dimages = dweight = dbias = dtable = None
    patches, dout = backward.patches, backward.dout
    weight = patches.weight
    if backward.needs_images:
        dimages = _dimages(torch.mm(dout, weight.flatten(1)), patches)
    if backward.needs_weight:
        dweight = torch.mm(dout.T, _gather(patches)).view_as(weight)
    if backward.needs_bias:
        is_prefix = (patches.token_index < patches.num_prefix)[:, None]
        dbias = dout.masked_fill(is_prefix, 0).sum(0, dtype=torch.float32).to(weight.dtype)
    if backward.needs_table:
        dtable = _dtable(dout, patches).to(weight.dtype)
    return MixedScaleEmbedGradients(dimages, dweight, dbias, dtable)


def _gather(patches: Patches) -> Tensor:
    """Patch of each row, [total_tokens, 3 * p * p], in the dtype of `weight`; zeros for prefix tokens."""
    images, weight, patch_size = patches.images, patches.weight, patches.patch_size
    total_tokens = patches.token_index.shape[0]
    gathered = torch.empty(total_tokens, weight[0].numel(), dtype=weight.dtype, device=images.device)
    block_k = min(256, max(16, triton.next_power_of_2(patch_size**2)))
    num_blocks = triton.cdiv(patch_size**2, block_k)
    launch(
        _gather_kernel,
        (3 * num_blocks * triton.cdiv(total_tokens, 16),),
        images,
        (images, patches.batch_index, patches.token_index, gathered)
        + (*_sizes(patches), num_blocks, *_normalisation(patches)),
        PATCH_SIZE=patch_size,
        SCALE_FACTOR=patches.regions.scale_factor,
        BLOCK_M=16,
        BLOCK_K=block_k,
        num_warps=4,
    )
    return gathered


def _dtable(dout: Tensor, patches: Patches) -> Tensor:
    """Gradient of the table, float32 [num_candidates, dim]."""
    fine_mask, region_start, scale_factor = patches.regions
    num_prefix = patches.num_prefix
    total_tokens, dim = dout.shape
    batch, _, width = fine_mask.shape
    scales = patches.regions.scales(num_prefix)
    num_coarse, num_candidates = scales.num_regions, scales.num_candidates
    block_b, block_n = 16, min(128, max(16, triton.next_power_of_2(dim)))
    num_chunks, num_blocks = triton.cdiv(batch, block_b), triton.cdiv(dim, block_n)
    partial = torch.empty(num_chunks, num_candidates, dim, dtype=torch.float32, device=dout.device)
    launch(
        _dtable_kernel,
        (num_chunks * num_candidates * num_blocks,),
        dout,
        (dout, fine_mask.view(torch.uint8), region_start, patches.cu_seqlens, partial)
        + (total_tokens, batch, num_prefix, num_coarse, num_candidates, width * scale_factor, dim, num_blocks),
        SCALE_FACTOR=scale_factor,
        BLOCK_B=block_b,
        BLOCK_N=block_n,
        num_warps=2,
    )
    return partial.sum(0)


def _dimages(dpatches: Tensor, patches: Patches) -> Tensor:
    """Gradient of the images from that of the patches, [total_tokens, 3 * p * p]."""
    images, (fine_mask, region_start, scale_factor) = patches.images, patches.regions
    batch, _, height, width = images.shape
    dimages = torch.empty_like(images)
    block = 1024
    num_blocks = triton.cdiv(height * width, block)
    launch(
        _dimages_kernel,
        (batch * num_blocks,),
        images,
        (dpatches, fine_mask.view(torch.uint8), region_start, dimages)
        + (dpatches.shape[0], region_start.shape[1], height, width, num_blocks, *_normalisation(patches)[:3]),
        PATCH_SIZE=patches.patch_size,
        SCALE_FACTOR=scale_factor,
        BLOCK=block,
        num_warps=4,
    )
    return dimages


def _sizes(patches: Patches) -> tuple[int, ...]:
    """total_tokens, batch, num_prefix, num_coarse, num_fine, height and width, as the kernels take them."""
    batch, _, height, width = patches.images.shape
    scales = patches.regions.scales(patches.num_prefix)
    counts = scales.num_prefix, scales.num_regions, scales.most_patches
    return patches.token_index.shape[0], batch, *counts, height, width


def _normalisation(patches: Patches) -> tuple[float, ...]:
    """Scale of each channel, then shift of each channel: a normalised pixel is pixel * scale + shift."""
    mean, std = patches.mean, patches.std
    unit = 255.0 if patches.images.dtype == torch.uint8 else 1.0
    if mean is None or std is None:
        return (1.0 / unit,) * 3 + (0.0,) * 3
    return tuple(1.0 / (unit * s) for s in std) + tuple(-m / s for m, s in zip(mean, std, strict=True))


def unsupported_reason(device_type: str, dtype: torch.dtype, images_dtype: torch.dtype) -> str | None:
    """Reason why a weight of `dtype` with images of `images_dtype` cannot run here, or None."""
    reason = device_unsupported(device_type) or dtype_unsupported(dtype)
    if reason is None and images_dtype not in (torch.uint8, *FLOAT_DTYPES):
        return f"takes images of uint8, float32, bfloat16 or float16, got {str(images_dtype).removeprefix('torch.')}"
    return reason
