"""`unpack_to_grid`: packed mixed-scale tokens back on the fine grid, for dense heads."""

from torch import Tensor

from msvit_kernels import validation
from msvit_kernels.calls import UnpackToGrid
from msvit_kernels.layout import MixedScaleLayout, require_layout
from msvit_kernels.ops.unpack_to_grid import unpack_to_grid as operator


def unpack_to_grid(tokens: Tensor, layout: MixedScaleLayout, *, backend: str | None = None) -> Tensor:
    """Spreads packed tokens over the fine grid; a coarse token fills its s x s cells (appendix E.1 of the paper).

    Args:
        tokens: [total_tokens, dim], float32, bfloat16 or float16 (float64 on the reference backend), last axis
            contiguous.
        layout: from `mixed_scale_layout`, on the device of `tokens`.
        backend: "cuda", "triton", "cpu", "reference", or None for the first that supports the inputs.

    Returns:
        [batch, dim, Hf, Wf], dtype of `tokens`, contiguous. Prefix tokens are dropped.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, strides or devices that do not fit.
        NotImplementedError: no backend, or not the named one, supports the inputs; the text gives every reason.

    Note:
        A copy in forward, exact; the backward sums the cells of a coarse token in fp32, deterministically. Cost: each
        output element is written once.
    """
    validation.require_tensor("tokens", tokens, 2, validation.FLOATING_DTYPES, None)
    require_layout(layout, tokens.device)
    validation.require_shape("tokens", tokens, (layout.total_tokens, tokens.shape[1]))
    if tokens.shape[1] < 1:
        raise ValueError("tokens: expected dim of at least 1, got 0")
    if tokens.stride(1) != 1 and tokens.shape[0] and tokens.shape[1] > 1:
        raise ValueError(f"tokens: expected a contiguous last axis (stride 1), got stride {tokens.stride(1)}")
    out: Tensor = operator(UnpackToGrid(tokens, layout.regions), backend)
    return out
