"""Checks that the fields of a packing or layout fit together.

Each operator takes fields that a caller may have replaced one by one. Kinds and shapes are checked in every call. The
contents follow from the mask of fine regions; they are compared with it at the same times as other contents (see
`validation`).
"""

import torch
from torch import Tensor

from msvit_kernels import dispatch, validation
from msvit_kernels.calls import MixedScaleLayoutIndices, MixedScaleLayoutOffsets, Regions
from msvit_kernels.scales import Scales

_INT32_MAX = 2**31 - 1


# ---- kinds and shapes


def require_mask(fine_mask: Tensor, scale_factor: int, num_prefix: int, prefix: str = "") -> None:
    """Raises unless a mask of fine regions, of any strides and device, makes a layout with int32 offsets.

    `prefix` stands before the names of the fields in messages.
    """
    if _is_mask(fine_mask, scale_factor, num_prefix):
        return
    validation.require_int(f"{prefix}scale_factor", scale_factor, 2)
    validation.require_int(f"{prefix}num_prefix", num_prefix, 0)
    validation.require_tensor(f"{prefix}fine_mask", fine_mask, 3, (torch.bool,), None)
    batch, height, width = fine_mask.shape
    if height * width == 0:
        raise ValueError(f"{prefix}fine_mask: expected at least one region, got shape {tuple(fine_mask.shape)}")
    total = batch * (num_prefix + height * width * scale_factor**2)
    if total > _INT32_MAX:
        raise ValueError(f"{prefix}fine_mask: expected at most {_INT32_MAX} tokens (int32 offsets), got up to {total}")


def _is_mask(fine_mask: Tensor, scale_factor: int, num_prefix: int) -> bool:
    """Whether the arguments of `require_mask` are plain and valid, which takes less time to find out."""
    if not (type(scale_factor) is type(num_prefix) is int and isinstance(fine_mask, Tensor)):
        return False
    if fine_mask.dtype is not torch.bool or fine_mask.layout is not torch.strided or fine_mask.ndim != 3:
        return False
    batch, height, width = fine_mask.shape
    num_regions = height * width
    tokens = num_prefix + num_regions * scale_factor * scale_factor
    return scale_factor > 1 and num_prefix >= 0 and num_regions > 0 and batch * tokens <= _INT32_MAX


def require_regions(regions: Regions, num_prefix: int, device: torch.device | None) -> None:
    """Raises unless the tensors of `regions` have the right dtype and shape, contiguous, on `device` (if None, one)."""
    fine_mask, region_start, scale_factor = regions
    require_mask(fine_mask, scale_factor, num_prefix, "layout.")
    device = fine_mask.device if device is None else device
    batch, height, width = fine_mask.shape
    validation.require_array("layout.fine_mask", fine_mask, torch.bool, (batch, height, width), device)
    validation.require_array("layout.region_start", region_start, torch.int32, (batch, height * width), device)


def require_offsets(cu_seqlens: Tensor, regions: Regions) -> None:
    """Raises unless `cu_seqlens` is int32 [batch + 1], contiguous, on the device of `regions`."""
    mask = regions.fine_mask
    validation.require_array("layout.cu_seqlens", cu_seqlens, torch.int32, (mask.shape[0] + 1,), mask.device)


# ---- contents


def are_readable(x: Tensor) -> bool:
    """Whether a function above torch's dispatcher checks contents on the device of `x`.

    Not while torch.compile or a functional transform traces: the operators check when the graph runs.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor or not validation.checks_contents(x):
        return False
    return torch._C._functorch.peek_interpreter_stack() is None


def check_packing(
    prefix: str,
    cu_seqlens: Tensor,
    total_tokens: int,
    max_seqlen: int,
    num_prefix: int,
    num_tokens: Tensor | None = None,
    batch_index: Tensor | None = None,
) -> None:
    """Raises unless the offsets are valid and give `num_tokens` and `batch_index`.

    Args:
        prefix: text before the name of a field in a message, such as "layout.".
        cu_seqlens: int32 [batch + 1], contiguous.
        total_tokens: number of packed rows.
        max_seqlen: upper bound of the rows of an image.
        num_prefix: number of prefix tokens of each image.
        num_tokens: int32 [batch], contiguous, number of rows of each image; if None, not compared.
        batch_index: int32 [total_tokens], contiguous, image of each row; if None, not compared.
    """
    native = validation.native_module(cu_seqlens)
    if native is not None and native.valid_packing(
        cu_seqlens.data_ptr(),
        cu_seqlens.shape[0],
        min(total_tokens, _INT32_MAX + 1),
        min(max_seqlen, _INT32_MAX),
        min(num_prefix, _INT32_MAX),
        _address(num_tokens),
        _address(batch_index),
    ):
        return
    validation.check_offsets(f"{prefix}cu_seqlens", cu_seqlens, total_tokens, max_seqlen)
    lengths = cu_seqlens.diff()
    if lengths.numel() and (shortest := int(lengths.min())) < num_prefix:
        raise ValueError(f"{prefix}num_prefix: expected at most {shortest} (the shortest image), got {num_prefix}")
    _require_equal(f"{prefix}num_tokens", num_tokens, lengths, "cu_seqlens")
    images = torch.arange(lengths.shape[0], dtype=torch.int32, device=cu_seqlens.device)
    expected = images.repeat_interleave(lengths, output_size=total_tokens)
    _require_equal(f"{prefix}batch_index", batch_index, expected, "cu_seqlens")


def check_layout(
    regions: Regions,
    num_prefix: int | None,
    total_tokens: int,
    cu_seqlens: Tensor | None = None,
    batch_index: Tensor | None = None,
    token_index: Tensor | None = None,
) -> None:
    """Raises unless the fields are those that `mixed_scale_layout` computes from the mask.

    Args:
        regions: as `require_regions` accepts them.
        num_prefix: number of prefix tokens; if None, the same one of all images.
        total_tokens: number of packed rows.
        cu_seqlens: int32 [batch + 1], contiguous; if None, not compared.
        batch_index: int32 [total_tokens], contiguous; if None, not compared.
        token_index: int32 [total_tokens], contiguous; None if `batch_index` is.
    """
    fine_mask, region_start, scale_factor = regions
    native = validation.native_module(fine_mask)
    if native is not None and native.mixed_scale_layout_matches(
        fine_mask.data_ptr(),
        region_start.data_ptr(),
        _address(cu_seqlens),
        _address(batch_index),
        _address(token_index),
        *fine_mask.shape,
        min(total_tokens, _INT32_MAX + 1),
        scale_factor,
        -1 if num_prefix is None else num_prefix,
    ):
        return
    if num_prefix is None:
        num_prefix = _prefix_tokens(regions, total_tokens)
    offsets = MixedScaleLayoutOffsets(fine_mask, scale_factor, num_prefix)
    _, expected, starts = dispatch.function("mixed_scale_layout", "reference", "mixed_scale_layout_offsets")(offsets)
    if total_tokens != int(expected[-1]):
        raise ValueError(f"total_tokens: expected {int(expected[-1])} for this fine_mask, got {total_tokens}")
    _require_equal("layout.cu_seqlens", cu_seqlens, expected, "fine_mask")
    _require_equal("layout.region_start", region_start, starts, "fine_mask")
    if batch_index is None:
        return
    rows = MixedScaleLayoutIndices(regions, expected, total_tokens, num_prefix)
    images, candidates = dispatch.function("mixed_scale_layout", "reference", "mixed_scale_layout_fwd")(rows)
    _require_equal("layout.batch_index", batch_index, images, "fine_mask")
    _require_equal("layout.token_index", token_index, candidates, "fine_mask")


def _prefix_tokens(regions: Regions, total_tokens: int) -> int:
    """Number of prefix tokens of each image in a layout of `total_tokens` rows."""
    fine_mask, _, scale_factor = regions
    batch, height, width = fine_mask.shape
    patches = Scales((height, width), scale_factor, 0).total_tokens(batch, int(fine_mask.sum()))
    num_prefix = (total_tokens - patches) // max(batch, 1)
    if num_prefix < 0 or patches + batch * num_prefix != total_tokens:
        wanted = f"{patches} for this fine_mask and as many prefix tokens in each of {batch} images"
        raise ValueError(f"total_tokens: expected {wanted}, got {total_tokens}")
    return num_prefix


def _require_equal(name: str, given: Tensor | None, expected: Tensor, source: str) -> None:
    if given is None or torch.equal(given, expected):
        return
    place = (given != expected).nonzero()[0].tolist()
    wanted, got = (int(x[tuple(place)]) for x in (expected, given))
    index = ", ".join(map(str, place))
    raise ValueError(f"{name}: expected {wanted} at index {index} for this {source}, got {got}")


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
