"""`mixed_scale_layout`: offsets and indices of packed tokens, from a mask of fine regions."""

from torch import Tensor

from msvit_kernels import consistency, validation
from msvit_kernels.calls import MixedScaleLayoutIndices, MixedScaleLayoutOffsets, Regions
from msvit_kernels.layout import MixedScaleLayout
from msvit_kernels.ops.mixed_scale_layout import mixed_scale_layout_indices, mixed_scale_layout_offsets
from msvit_kernels.scales import Scales


def mixed_scale_layout(
    fine_mask: Tensor,
    *,
    scale_factor: int = 2,
    num_prefix: int = 1,
    total_tokens: int | None = None,
    backend: str | None = None,
) -> MixedScaleLayout:
    """Packs the active tokens of a batch end to end.

        num_tokens_b = num_prefix + sum_r (1 + fine_mask_b,r * (scale_factor ** 2 - 1))

    A fine region has scale_factor ** 2 active tokens, a coarse region has one (eq. 3 of MSViT, arXiv 2307.02321, with
    True for fine).

    Args:
        fine_mask: bool [batch, Hc, Wc], CPU or GPU, True for a fine region.
        scale_factor: s, fine tokens along one side of a region, at least 2.
        num_prefix: number of prefix tokens (class, registers) of each image, at least 0.
        total_tokens: number of packed rows of the batch, prefix included. If None, one integer is copied to the host.
        backend: "cuda", "triton", "cpu" or "reference"; if None, the first that supports the inputs.

    Returns:
        The layout, with its tensors on the device of `fine_mask`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape or number is invalid, or `total_tokens` differs from the total of the mask (checked on the
            CPU and, on a GPU, only if MSVIT_CHECK=1).
        NotImplementedError: the named backend, or every backend, cannot run the inputs; the message gives each reason.

    Note:
        Integers, exact and deterministic; not differentiable. Cost: one scan over the regions and one write per token.
    """
    consistency.require_mask(fine_mask, scale_factor, num_prefix)
    validation.require_backend(backend)
    _, height, width = fine_mask.shape
    scales = Scales((height, width), scale_factor, num_prefix)
    fine_mask = fine_mask.contiguous()
    offsets = MixedScaleLayoutOffsets(fine_mask, scale_factor, num_prefix)
    num_tokens, cu_seqlens, region_start = mixed_scale_layout_offsets(offsets, backend)
    if total_tokens is None:
        total_tokens = int(cu_seqlens[-1])
    else:
        validation.require_int("total_tokens", total_tokens, 0)
    regions = Regions(fine_mask, region_start, scale_factor)
    indices = MixedScaleLayoutIndices(regions, cu_seqlens, total_tokens, num_prefix)
    batch_index, token_index = mixed_scale_layout_indices(indices, backend)
    return MixedScaleLayout(
        fine_mask=fine_mask,
        cu_seqlens=cu_seqlens,
        num_tokens=num_tokens,
        batch_index=batch_index,
        token_index=token_index,
        region_start=region_start,
        total_tokens=total_tokens,
        max_seqlen=scales.most_tokens,
        grid_size=scales.grid_size,
        scale_factor=scale_factor,
        num_prefix=num_prefix,
    )
