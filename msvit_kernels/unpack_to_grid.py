"""`unpack_to_grid`: copy of packed mixed-scale tokens to the fine grid, for dense heads."""

from torch import Tensor

from msvit_kernels import validation
from msvit_kernels.calls import UnpackToGrid
from msvit_kernels.layout import MixedScaleLayout, require_layout
from msvit_kernels.ops.unpack_to_grid import unpack_to_grid as operator


def unpack_to_grid(tokens: Tensor, layout: MixedScaleLayout, *, backend: str | None = None) -> Tensor:
    """Copies packed tokens to the fine grid.

        grid[b, :, y, x] = tokens[region_start[b, r] + [r is fine] * l, :]

    r is the region of cell (y, x), and l is the cell's index within r in raster order. A coarse token fills its s x s
    cells (appendix E.1 of MSViT, arXiv 2307.02321).

    Args:
        tokens: [total_tokens, dim], float32, bfloat16 or float16 (float64 on the reference backend only), CPU or GPU,
            last axis contiguous.
        layout: result of `mixed_scale_layout`, on the device of `tokens`.
        backend: "cuda", "triton", "cpu" or "reference"; if None, the first that supports the inputs.

    Returns:
        [batch, dim, Hf, Wf], dtype and device of `tokens`, contiguous, without prefix tokens.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride or device is invalid, or a row of the layout is out of range (checked on the CPU
            and, on a GPU, only if MSVIT_CHECK=1).
        NotImplementedError: the named backend, or every backend, cannot run the inputs; the message gives each reason.

    Note:
        The forward is an exact copy; the backward sums the cells of a coarse token in fp32. Both are deterministic.
        Differentiable in `tokens`. Cost: tokens and grid pass through memory once in each direction.
    """
    validation.validate_rows("tokens", tokens)
    validation.require_backend(backend)
    require_layout(layout, tokens.device)
    validation.require_shape("tokens", tokens, (layout.total_tokens, tokens.shape[1]))
    out: Tensor = operator(UnpackToGrid(tokens, layout.regions), backend)
    return out
