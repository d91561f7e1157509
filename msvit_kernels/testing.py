"""Helpers of tests and benches: the tolerance policy, and inputs that exercise the operators."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from msvit_kernels import dispatch

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def assert_accurate(name: str, actual: Tensor, eager: Tensor, oracle: Tensor, summand: float = 1.0) -> None:
    """Asserts that a result errs at most twice as much as eager code in the same dtype, both compared with fp64.

        max|actual - oracle| <= 2 * max|eager - oracle| + rounding

    `rounding` is two units in the last place of the largest value, which storing in the dtype may cost, plus four fp32
    units for sums in another order. If summands cancel, the largest value is smaller than they are; the fp32 units are
    therefore those of `summand` or of the largest value, whichever is greater.

    Args:
        name: name of the result, for the message.
        actual: result to check, any shape and dtype.
        eager: result of the reference backend in the dtype of `actual`.
        oracle: result of the reference backend in float64, shape of `actual`.
        summand: magnitude of summands that may cancel; 1 for inputs of unit magnitude.

    Raises:
        AssertionError: the shape or dtype is wrong, `actual` is NaN or infinite where `oracle` is finite, infinities
            differ, or the error is too large.
    """
    assert actual.shape == oracle.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(oracle.shape)}"
    assert actual.dtype == eager.dtype, f"{name}: dtype {actual.dtype}, expected {eager.dtype}"
    if actual.numel() == 0:
        return
    epsilon = torch.finfo(actual.dtype).eps
    actual, eager, oracle = (x.detach().to(oracle.device).double() for x in (actual, eager, oracle))
    finite = oracle.isfinite()
    assert torch.equal(actual[~finite], oracle[~finite]), f"{name}: infinities differ from those of the oracle"
    assert actual[finite].isfinite().all(), f"{name}: has NaN or infinity where the oracle is finite"
    if not finite.any():
        return
    error = (actual - oracle)[finite].abs().max().item()
    eager_error = (eager - oracle)[finite].abs().max().item()
    largest = oracle[finite].abs().max().item()
    rounding = 2 * epsilon * largest + 4 * torch.finfo(torch.float32).eps * max(largest, summand)
    bound = 2 * eager_error + rounding
    assert error <= bound, f"{name}: error {error:.3e} above {bound:.3e} (eager in the same dtype: {eager_error:.3e})"


def backends_for(operator: str, device_type: str, dtype: torch.dtype, **details: Any) -> list[str]:
    """Names of the backends that run `operator` on such inputs on this machine."""
    return [
        name
        for name in dispatch.BACKENDS
        if dispatch.unsupported_reason(operator, name, device_type, dtype, **details) is None
    ]


def compiles(backend: str, device_type: str) -> bool:
    """Whether a new dtype, shape or flag may take the backend seconds to compile; if so, tests use fewer of them."""
    return backend == "triton" and device_type == "cuda"


def offsets(lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """int32 [len(lengths) + 1]: `cu_seqlens` of sequences of these lengths."""
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(device, torch.int32)


def qkv_views(
    total_tokens: int, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as strided views of one tensor [total_tokens, 3, num_heads, head_dim] of unit normal values."""
    q, k, v = torch.randn(total_tokens, 3, num_heads, head_dim, device=device).to(dtype).unbind(1)
    return q, k, v


def key_weights(kind: str, total_tokens: int, device: torch.device | str = "cpu") -> Tensor | None:
    """float32 [total_tokens] weights: "none", "ones", "zeros", "binary" or "fractional" (a third of it zeros)."""
    if kind == "none":
        return None
    fixed = {"ones": torch.ones, "zeros": torch.zeros}
    if kind in fixed:
        return fixed[kind](total_tokens, device=device)
    weights = torch.rand(total_tokens, device=device)
    if kind == "binary":
        return (weights > 0.5).float()
    return weights.masked_fill(torch.rand_like(weights) < 1 / 3, 0)


def fine_masks(batch: int, height: int, width: int) -> Iterator[tuple[str, Tensor]]:
    """(name, bool [batch, height, width]) of the masks that every test of the layout covers."""
    mask = torch.rand(batch, height, width) < 0.5
    yield "random", mask
    yield "all_coarse", torch.zeros_like(mask)
    yield "all_fine", torch.ones_like(mask)
    mixed = mask.clone()
    mixed[0] = False
    mixed[-1] = True
    yield "coarse_beside_fine", mixed
