"""Checks of arguments: types and shapes in the public functions, contents just before a kernel runs.

Contents (offsets, indices, weights) are always checked on the CPU. On a GPU they are checked only if MSVIT_CHECK=1,
because each check waits for a copy to the host.
"""

import importlib
import math
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from msvit_kernels.calls import head_dim_fault
from msvit_kernels.scales import tokens_gained

FLOATING_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INT32_MAX = 2**31 - 1

_native: ModuleType | None
try:
    _native = importlib.import_module("msvit_kernels._C")
except ImportError:
    _native = None


# ---- one property at a time


def require_tensor(name: str, x: Any, ndim: int, dtypes: Sequence[torch.dtype], device: torch.device | None) -> None:
    """Raises unless `x` is a strided tensor of `ndim` axes, one of `dtypes`, on `device` (if None, on any)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.layout is not torch.strided:
        raise TypeError(f"{name}: expected a strided tensor, got layout {x.layout}")
    if x.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} axes, got {x.ndim} (shape {tuple(x.shape)})")
    if x.dtype not in dtypes:
        expected = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name}: expected dtype {expected}, got {str(x.dtype).removeprefix('torch.')}")
    if device is not None and x.device != device:
        raise ValueError(f"{name}: expected device {device}, got {x.device}")


def require_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """Raises unless `x` has exactly this shape."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(x.shape)}")


def require_int(name: str, value: Any, minimum: int) -> None:
    """Raises unless `value` is an int (not a bool, not a tensor) of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}")


def require_finite(name: str, value: Any) -> None:
    """Raises unless `value` is a finite real number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a float, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")


# ---- whole argument lists


def validate_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raises unless q, k and v of `varlen_attention` have matching shapes, dtypes and devices and valid strides."""
    require_tensor("q", q, 3, FLOATING_DTYPES, None)
    for name, x in (("k", k), ("v", v)):
        require_tensor(name, x, 3, (q.dtype,), q.device)
    num_heads, head_dim = q.shape[1:]
    require_shape("k", k, (k.shape[0], num_heads, head_dim))
    require_shape("v", v, k.shape)
    if fault := head_dim_fault(head_dim):
        raise ValueError(f"q: expected {fault}")
    if num_heads < 1:
        raise ValueError("q: expected at least one head, got none")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.stride(2) != 1 and x.numel():
            raise ValueError(f"{name}: expected a contiguous last axis (stride 1), got stride {x.stride(2)}")


def validate_key_weight(key_weight: Tensor, k: Tensor) -> None:
    """Raises unless the weights have the shape, dtype and device that the keys `k` require."""
    dtype = torch.float64 if k.dtype == torch.float64 else torch.float32
    require_tensor("key_weight", key_weight, 1, (dtype,), k.device)
    require_shape("key_weight", key_weight, (k.shape[0],))


def validate_offsets(name: str, cu_seqlens: Tensor, device: torch.device | None) -> None:
    """Raises unless the offsets are int32 [batch + 1], contiguous, on `device` (if None, on any)."""
    require_tensor(name, cu_seqlens, 1, (torch.int32,), device)
    if cu_seqlens.shape[0] < 1:
        raise ValueError(f"{name}: expected shape [batch + 1], got [0]")
    if not cu_seqlens.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got stride {cu_seqlens.stride(0)}")


def validate_normalisation(images: Tensor, mean: Any, std: Any) -> tuple[list[float] | None, list[float] | None]:
    """Returns `mean` and `std` as lists of three floats, or None twice; raises if either is invalid.

    Raises:
        TypeError: `mean` or `std` is no sequence of numbers.
        ValueError: one of them is None, both are None for uint8 images, or a number is invalid.
    """
    if mean is None and std is None:
        if images.dtype == torch.uint8:
            raise ValueError("mean, std: required for uint8 images, got None")
        return None, None
    if mean is None or std is None:
        raise ValueError("mean, std: expected both or neither, got one")
    for name, values in (("mean", mean), ("std", std)):
        if isinstance(values, Tensor | str) or not isinstance(values, Sequence):
            raise TypeError(f"{name}: expected a sequence of 3 floats, got {type(values).__name__}")
        if len(values) != 3:
            raise ValueError(f"{name}: expected 3 numbers, got {len(values)}")
        for value in values:
            require_finite(name, value)
    if min(std) <= 0:
        raise ValueError(f"std: expected numbers above zero, got {tuple(std)}")
    return [float(x) for x in mean], [float(x) for x in std]


def check_int32_range(name: str, total: int) -> None:
    """Raises if offsets of up to `total` rows do not fit int32."""
    if total > _INT32_MAX:
        raise ValueError(f"{name}: expected at most {_INT32_MAX} tokens (int32 offsets), got up to {total}")


# ---- contents, just before a kernel runs


def checks_contents(x: Tensor) -> bool:
    """Whether the contents of index tensors on the device of `x` are checked."""
    return x.is_cpu or os.environ.get("MSVIT_CHECK") == "1"


def check_offsets(name: str, cu_seqlens: Tensor, total: int, max_seqlen: int) -> None:
    """Raises unless the offsets start at 0, never decrease, end at `total` and are at most `max_seqlen` apart."""
    if _native_accepts(cu_seqlens, total, max_seqlen):
        return
    lengths = cu_seqlens.diff().tolist()
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0:
        raise ValueError(f"{name}: expected to start at 0, got {first}")
    if any(length < 0 for length in lengths):
        raise ValueError(f"{name}: expected offsets that never decrease, got {cu_seqlens.tolist()[:8]}...")
    if last != total:
        raise ValueError(f"{name}: expected to end at the number of tokens {total}, got {last}")
    if lengths and max(lengths) > max_seqlen:
        raise ValueError(f"max_seqlen: expected at least {max(lengths)} (the longest sequence), got {max_seqlen}")


def _native_accepts(cu_seqlens: Tensor, total: int, max_seqlen: int) -> bool:
    """Whether the native module accepts the offsets, faster than tensor indexing could; False if it cannot check."""
    if _native is None or not cu_seqlens.is_cpu:
        return False
    return bool(_native.valid_offsets(cu_seqlens.data_ptr(), cu_seqlens.shape[0], total, max_seqlen))


def check_key_weight(key_weight: Tensor) -> None:
    """Raises unless every weight is finite and at least 0."""
    if key_weight.numel() == 0:
        return
    low, high = (float(x) for x in key_weight.aminmax())
    if not (low >= 0 and high < math.inf):
        raise ValueError(f"key_weight: expected finite numbers >= 0, got values from {low} to {high}")


def check_indices(name: str, index: Tensor, size: int) -> None:
    """Raises unless every index lies in [0, size)."""
    if index.numel() == 0:
        return
    low, high = (int(x) for x in index.aminmax())
    if low < 0 or high >= size:
        raise ValueError(f"{name}: expected indices from 0 to {size - 1}, got {low} to {high}")


def check_total(cu_seqlens: Tensor, total_tokens: int) -> None:
    """Raises unless the offsets end at the caller's `total_tokens`."""
    if _native_accepts(cu_seqlens, total_tokens, _INT32_MAX):
        return
    if int(cu_seqlens[-1]) != total_tokens:
        raise ValueError(f"total_tokens: expected {int(cu_seqlens[-1])} for this fine_mask, got {total_tokens}")


def check_region_start(region_start: Tensor, fine_mask: Tensor, total_tokens: int, scale_factor: int) -> None:
    """Raises unless the rows of every region lie in [0, total_tokens)."""
    if region_start.numel() == 0:
        return
    last = region_start + fine_mask.flatten(1) * tokens_gained(scale_factor)
    low, high = int(region_start.min()), int(last.max())
    if low < 0 or high >= total_tokens:
        raise ValueError(f"tokens: expected at least {high + 1} rows for this layout, got {total_tokens}")
