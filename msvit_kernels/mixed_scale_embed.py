"""`mixed_scale_embed`: embedding of the active tokens of two scales, straight from the images."""

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
    mean: Sequence[float] | Tensor | None = None,
    std: Sequence[float] | Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Embeds the active tokens of a batch: patch projection plus position encoding.

        row_t = table[token_index_t] + [t is a patch] * (weight . patch_t + bias)

    patch_t is a patch of image batch_index_t; a coarse patch is averaged over s x s pixels (eq. 4 and 5 of MSViT,
    arXiv 2307.02321). The row of a prefix token is a row of the table alone.

    Args:
        images: [batch, 3, Hf * patch_size, Wf * patch_size], uint8 or floating point, CPU or GPU.
        layout: result of `mixed_scale_layout`, on the device of `images`.
        weight: [dim, 3, patch_size, patch_size], float32, bfloat16 or float16 (float64 on the reference backend only),
            on the device of `images`.
        bias: [dim], dtype and device of `weight`, or None.
        table: [num_prefix + Nc + Nf, dim], dtype and device of `weight`; the position encoding of each candidate.
        patch_size: side of a fine patch in pixels.
        mean: three floats, one per channel: a sequence, a NumPy array, or a tensor [3] of any floating-point dtype and
            device, which is copied to the host. Pixels become (x / 255 - mean) / std in uint8 images and
            (x - mean) / std in floating-point images. If None, floating-point images are not normalised; required for
            uint8 images.
        std: three floats above zero, one per channel, as `mean`; required with `mean`.
        backend: "cuda", "triton", "cpu" or "reference"; if None, the first that supports the inputs.

    Returns:
        [total_tokens, dim], dtype and device of `weight`, contiguous.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, device or number is invalid, or an index of the layout is out of range (checked on the CPU
            and, on a GPU, only if MSVIT_CHECK=1).
        NotImplementedError: the named backend, or every backend, cannot run the inputs; the message gives each reason.

    Note:
        Sums are accumulated in fp32. Forward and backward are deterministic. Differentiable in `weight`, `bias`,
        `table` and floating-point `images`. Images that are not contiguous are copied once. Cost: 6 * patch_size ** 2 *
        dim operations per active patch token; inactive candidates cost nothing.
    """
    _validate(images, layout, weight, bias, table, patch_size)
    validation.require_backend(backend)
    mean_list, std_list = validation.validate_normalisation(images, mean, std, weight.dtype)
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
