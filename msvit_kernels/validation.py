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

from msvit_kernels.calls import VarlenAttention, head_dim_fault

FLOATING_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1  # of the operators' arguments
_INTS = (int, torch.SymInt)
_FLOAT32, _FLOAT64 = torch.finfo(torch.float32), torch.finfo(torch.float64)

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
        raise TypeError(f"{name}: expected dtype {', '.join(map(_short, dtypes))}, got {_short(x.dtype)}")
    if device is not None and x.device != device:
        raise ValueError(f"{name}: expected device {device}, got {x.device}")


def require_shape(name: str, x: Tensor, shape: Sequence[int]) -> None:
    """Raises unless `x` has exactly this shape."""
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(x.shape)}")


def require_array(name: str, x: Any, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    """Raises unless `x` is a contiguous tensor of exactly this dtype and shape on `device`."""
    try:
        if x.dtype is dtype and x.shape == shape and x.device == device and x.is_contiguous():
            return
    except (AttributeError, RuntimeError):  # no tensor, or one without strides
        pass
    expected = f"{name}: expected {_short(dtype)} {list(shape)} on {device}, contiguous"
    if not isinstance(x, Tensor):
        raise TypeError(f"{expected}, got {type(x).__name__}")
    if x.layout is not torch.strided:
        raise TypeError(f"{expected}, got layout {x.layout}")
    error = ValueError if x.dtype is dtype else TypeError
    raise error(f"{expected}, got {_short(x.dtype)} {list(x.shape)} on {x.device} with strides {list(x.stride())}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def require_one_device(names: Sequence[str], values: Sequence[Any]) -> None:
    """Raises unless all tensors among the values are on one device."""
    devices = {name: x.device for name, x in zip(names, values, strict=False) if isinstance(x, Tensor)}
    if len(set(devices.values())) > 1:
        raise ValueError(f"{', '.join(devices)}: expected one device, got {', '.join(map(str, devices.values()))}")


def require_int(name: str, value: Any, minimum: int) -> None:
    """Raises unless `value` is an int (not a bool, not a tensor) of at least `minimum` that fits 64 bits."""
    if isinstance(value, bool) or not isinstance(value, _INTS):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name}: expected at least {minimum}, got {value}")
    if value > _INT64_MAX:
        raise ValueError(f"{name}: expected at most 2**63 - 1, got {value}")


def require_finite(name: str, value: Any, dtype: torch.dtype = torch.float64) -> None:
    """Raises unless `value` is a real number that is finite in `dtype`, or in float32 if `dtype` has fewer bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a float, got {type(value).__name__}")
    largest = _limits(dtype).max
    if not -largest <= value <= largest:
        is_large = isinstance(value, int) or math.isfinite(value)
        kind = " in float32" if is_large and largest == _FLOAT32.max else ""
        got = "a larger int" if isinstance(value, int) else value
        raise ValueError(f"{name}: expected a finite number{kind}, got {got}")


def require_softmax_scale(value: Any, dtype: torch.dtype) -> None:
    """Raises unless the factor is a real number that stays finite in the arithmetic of `dtype`."""
    require_finite("softmax_scale", value, dtype)
    largest = _limits(dtype).max * math.log(2)  # kernels multiply the factor by log2(e)
    if abs(value) > largest:
        raise ValueError(f"softmax_scale: expected a magnitude of at most {largest:.4g}, got {value}")


def _limits(dtype: torch.dtype) -> torch.finfo:
    return _FLOAT64 if dtype is torch.float64 else _FLOAT32


def require_backend(backend: Any) -> None:
    """Raises unless `backend` is a string or None."""
    if backend is not None and not isinstance(backend, str):
        raise TypeError(f"backend: expected a string or None, got {type(backend).__name__}")


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


def validate_attention_call(call: VarlenAttention) -> None:
    """Raises unless a call that did not come through the public function is one that it could have made."""
    q, k = call.q, call.k
    validate_attention(q, k, call.v)
    device = q.device
    validate_offsets("cu_seqlens", call.cu_seqlens_q, device)
    require_array("cu_seqlens_k", call.cu_seqlens_k, torch.int32, tuple(call.cu_seqlens_q.shape), device)
    require_int("max_seqlen", call.max_seqlen_q, 0)
    require_int("max_seqlen_k", call.max_seqlen_k, 0)
    require_softmax_scale(call.softmax_scale, q.dtype)
    if call.key_weight is not None:
        validate_key_weight(call.key_weight, k)
        require_array("key_weight", call.key_weight, call.key_weight.dtype, (k.shape[0],), device)


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


def validate_rows(name: str, x: Tensor) -> None:
    """Raises unless `x` is floating-point rows [rows, dim] with a contiguous last axis."""
    require_tensor(name, x, 2, FLOATING_DTYPES, None)
    if x.shape[1] < 1:
        raise ValueError(f"{name}: expected dim of at least 1, got 0")
    if x.stride(1) != 1 and x.shape[0] and x.shape[1] > 1:
        raise ValueError(f"{name}: expected a contiguous last axis (stride 1), got stride {x.stride(1)}")


def validate_normalisation(
    images: Tensor, mean: Any, std: Any, dtype: torch.dtype
) -> tuple[list[float] | None, list[float] | None]:
    """Returns `mean` and `std` as lists of three floats, or None twice; raises if either is invalid.

    Args:
        images: uint8 or floating point.
        mean: None, or three floats: a sequence, tensor or NumPy array. A tensor is copied to the host.
        std: as `mean`.
        dtype: dtype of the weight.

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
    mean, std = _three_floats("mean", mean, dtype), _three_floats("std", std, dtype)
    # Smaller ones have no finite reciprocal.
    if min(std) < _limits(dtype).tiny:
        raise ValueError(f"std: expected numbers above zero, got {tuple(std)}")
    return mean, std


def _three_floats(name: str, values: Any, dtype: torch.dtype) -> list[float]:
    if isinstance(values, Tensor):
        if not values.is_floating_point():
            raise TypeError(f"{name}: expected a tensor of a floating-point dtype, got {_short(values.dtype)}")
        if values.requires_grad:
            raise ValueError(f"{name}: expected a tensor without requires_grad (no gradient is computed); detach it")
        require_shape(name, values, (3,))
    if hasattr(values, "tolist"):
        values = values.tolist()
    if type(values) not in (list, tuple) and (isinstance(values, str) or not isinstance(values, Sequence)):
        raise TypeError(f"{name}: expected a sequence of 3 floats, got {type(values).__name__}")
    if len(values) != 3:
        raise ValueError(f"{name}: expected 3 numbers, got {len(values)}")
    largest = _limits(dtype).max
    for value in values:
        if not (type(value) is float and -largest <= value <= largest):  # spares the usual call most of the time
            require_finite(name, value, dtype)
    return list(map(float, values))


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


def native_module(x: Tensor) -> ModuleType | None:
    """The native module if it is built and `x` is in the memory that it reads, else None."""
    return _native if x.is_cpu else None


def check_key_weight(key_weight: Tensor) -> None:
    """Raises unless every weight is finite and at least 0."""
    if key_weight.numel() == 0:
        return
    low, high = (float(x) for x in key_weight.aminmax())
    if not (low >= 0 and high < math.inf):
        hint = "; in a model, NaN pixels or gate logits become such weights" if math.isnan(low) else ""
        raise ValueError(f"key_weight: expected finite numbers >= 0, got values from {low} to {high}{hint}")
