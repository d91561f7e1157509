"""`mixed_scale_embed`: from images to packed embedded tokens of two scales, in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from msvit_kernels import validation
from msvit_kernels.calls import MixedScaleEmbed, Patches
from msvit_kernels.layout import MixedScaleLayout, require_layout
from msvit_kernels.ops.mixed_scale_embed import mixed_scale_embed as operator


def mixed_scale_embed(
    images: Tensor,
    layout: MixedScaleLayout,
    weight: Tensor,
    bias: Tensor | None,
    table: Tensor,
    *,
    patch_size: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    backend: str | None = None,
) -> Tensor:
    """Embeds the active tokens of a batch: patch projection plus the row of a table of position encodings.

        row_t = table[token_index_t] + [t is a patch] * (weight . patch_t + bias)

    with patch_t cut from the image of row t; a coarse patch is the area average over s x s pixels (eq. 4 and 5 of
    the MSViT paper). Prefix tokens are rows of the table alone.

    Args:
        images: [batch, 3, H, W], uint8 or floating, H and W the fine grid of the layout times `patch_size`.
        layout: from `mixed_scale_layout`, on the device of `images`.
        weight: [dim, 3, patch_size, patch_size], float32, bfloat16 or float16 (float64 on the reference backend).
        bias: [dim], dtype of `weight`, or None.
        table: [num_prefix + Nc + Nf, dim], dtype of `weight`: what is added to each candidate.
        patch_size: pixels along one side of a fine patch.
        mean: three numbers, one per channel, in units of [0, 1] for uint8 images and of the images themselves else;
            pixels become (x / 255 - mean) / std for uint8, (x - mean) / std for floating images. Required for uint8.
        std: three numbers above zero; goes with `mean`.
        backend: "cuda", "triton", "cpu", "reference", or None for the first that supports the inputs.

    Returns:
        [total_tokens, dim], dtype of `weight`, contiguous.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or numbers that do not fit; a layout with indices out of range (checked on the
            CPU, and on a GPU under MSVIT_CHECK=1).
        NotImplementedError: no backend, or not the named one, supports the inputs; the text gives every reason.

    Note:
        Sums are accumulated in fp32. Deterministic in forward and backward. Differentiable in weight, bias, table and
        floating images. Images that are not contiguous are copied once. Cost: 6 * patch_size ** 2 * dim operations
        for each active patch token; no tensor of all candidates is written.
    """
    _validate(images, layout, weight, bias, table, patch_size)
    mean_list, std_list = validation.validate_normalisation(images, mean, std)
    patches = Patches(
        images=images.contiguous(),
        regions=layout.regions,
        cu_seqlens=layout.cu_seqlens,
        batch_index=layout.batch_index,
        token_index=layout.token_index,
        num_prefix=layout.num_prefix,
        weight=weight.contiguous(),
        patch_size=patch_size,
        mean=mean_list,
        std=std_list,
    )
    call = MixedScaleEmbed(patches, table.contiguous(), bias=None if bias is None else bias.contiguous())
    out: Tensor = operator(call, backend)
    return out


def _validate(
    images: Tensor, layout: MixedScaleLayout, weight: Tensor, bias: Tensor | None, table: Tensor, patch_size: int
) -> None:
    """Shapes, dtypes and devices of the tensors of `mixed_scale_embed`."""
    validation.require_tensor("images", images, 4, (torch.uint8, *validation.FLOATING_DTYPES), None)
    require_layout(layout, images.device)
    validation.require_int("patch_size", patch_size, 1)
    height, width = (cells * patch_size for cells in layout.grid_size)
    validation.require_shape("images", images, (layout.batch, 3, height, width))
    validation.require_tensor("weight", weight, 4, validation.FLOATING_DTYPES, images.device)
    dim = weight.shape[0]
    validation.require_shape("weight", weight, (dim, 3, patch_size, patch_size))
    if bias is not None:
        validation.require_tensor("bias", bias, 1, (weight.dtype,), images.device)
        validation.require_shape("bias", bias, (dim,))
    validation.require_tensor("table", table, 2, (weight.dtype,), images.device)
    validation.require_shape("table", table, (layout.num_candidates, dim))
