"""The table of backends, the order in which they are tried, and the reasons for which one cannot run a call."""

import functools
import importlib
import platform
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

# Tried from left to right when the caller names none; cpu first: cuda and triton may take CPU tensors, too, in tests.
BACKENDS = ("cpu", "cuda", "triton", "reference")
OPERATORS = ("varlen_attention", "mixed_scale_layout", "mixed_scale_embed", "unpack_to_grid")

# On Hopper, cuda is tried first up to this max_seqlen and triton above it, as measured on an H100 in bf16 at head_dim
# 64 (docs/cuda.md). Other GPUs have not been measured and follow the order of the table.
LONGEST_FOR_CUDA = {"varlen_attention_fwd": 0, "varlen_attention_bwd": 64}

# Properties of the inputs of a ViT-S, for which `explain` reports.
_TYPICAL_INPUTS: dict[str, dict[str, Any]] = {
    "varlen_attention": {"head_dim": 64},
    "mixed_scale_layout": {},
    "mixed_scale_embed": {"images_dtype": torch.uint8},
    "unpack_to_grid": {},
}


@functools.cache
def _load(backend: str, operator: str) -> ModuleType | str:
    """The module of `backend` for `operator`, or the reason why it cannot be imported."""
    name = f"msvit_kernels.{backend}.{operator}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            return f"this version has no {backend} kernel for {operator}"
        return f"not importable: {error}"
    except ImportError as error:
        return f"not importable: {error}"


@functools.cache
def unsupported_reason(
    operator: str, backend: str, device_type: str, dtype: torch.dtype, options: Sequence[str] = (), **details: Any
) -> str | None:
    """Reason why `backend` cannot run `operator` on such inputs with these options, or None."""
    module = _load(backend, operator)
    if isinstance(module, str):
        return module
    reason: str | None = module.unsupported_reason(device_type, dtype, **details)
    unknown = ", ".join(option for option in options if option not in module.OPTIONS)
    return "; ".join(filter(None, [reason, unknown and f"does not take {unknown}"])) or None


@functools.cache
def resolve(
    operator: str,
    backend: str | None,
    device_type: str,
    dtype: torch.dtype,
    preferred: str | None = None,
    options: tuple[str, ...] = (),
    **details: Any,
) -> str:
    """Name of the backend that runs the call.

    Args:
        operator: one of `OPERATORS`.
        backend: one of `BACKENDS`, used or refused without fallback; if None, the first that can run the call.
        device_type: device of the inputs, "cpu" or "cuda".
        dtype: dtype of the inputs.
        preferred: backend that is tried first if `backend` is None.
        options: names of the options that the call sets (see `calls`).
        details: further properties of the inputs, under the names of the parameters of `unsupported_reason`.

    Raises:
        ValueError: `backend` is not one of `BACKENDS`.
        NotImplementedError: the named backend, or every backend, cannot run the call; the message gives each reason.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)} or None, got {backend!r}")
    reasons = {name: unsupported_reason(operator, name, device_type, dtype, options, **details) for name in BACKENDS}
    order = (backend,) if backend else BACKENDS if preferred is None else (preferred, *BACKENDS)
    for name in order:
        if reasons[name] is None:
            return name
    wanted = f"backend {backend!r} cannot" if backend else "no backend can"
    inputs = ", ".join(
        [device_type, str(dtype).removeprefix("torch."), *(f"{k} {v}" for k, v in details.items()), *options]
    )
    lines = "".join(f"\n  {name}: {reason or 'supports it'}" for name, reason in reasons.items())
    raise NotImplementedError(f"{operator}: {wanted} run these inputs ({inputs}):{lines}")


@functools.cache
def resolve_function(
    operator: str,
    name: str,
    backend: str | None,
    device_type: str,
    dtype: torch.dtype,
    preferred: str | None = None,
    options: tuple[str, ...] = (),
    **details: Any,
) -> Callable[..., Any]:
    """Raw function `name` of the backend that `resolve` chooses, cached as a whole because every call needs it."""
    return function(operator, resolve(operator, backend, device_type, dtype, preferred, options, **details), name)


def attention_function(
    name: str,
    backend: str | None,
    max_seqlen: int,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    options: tuple[str, ...] = (),
) -> Callable[..., Any]:
    """Raw function `name` of `varlen_attention`; on Hopper the backend depends on the length of the sequences."""
    kind = device.type
    is_long = kind == "cuda" and max_seqlen > LONGEST_FOR_CUDA[name] and _is_hopper(device)
    preferred = "triton" if is_long else None
    return resolve_function("varlen_attention", name, backend, kind, dtype, preferred, options, head_dim=head_dim)


@functools.cache
def _is_hopper(device: torch.device) -> bool:
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device)[0] == 9


@functools.cache
def function(operator: str, backend: str, name: str) -> Callable[..., Any]:
    """Raw function `name` of a backend that `resolve` returned."""
    found: Callable[..., Any] = getattr(_load(backend, operator), name)
    return found


def explain() -> str:
    """Lists the backends of each operator on this machine, and the reason for each that is missing.

    Returns:
        Text of several lines: versions and devices, then, for CPU tensors (fp32) and GPU tensors (bf16), each operator
        with the backend that `backend=None` takes and the reason of each backend that cannot run it.
    """
    lines = [f"msvit_kernels on {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"]
    lines.append(f"  triton: {_version_of('triton')}")
    lines.append(f"  native CPU module: {_native_cpu_info()}")
    if torch.cuda.is_available():
        lines += [f"  GPU {i}: {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    else:
        lines.append("  GPU: none that torch can use")
    for device_type, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        lines.append(f"{device_type} tensors, {str(dtype).removeprefix('torch.')}:")
        if device_type == "cuda" and not torch.cuda.is_available():
            lines.append("  not on this machine")
            continue
        for operator in OPERATORS:
            lines += _explain_operator(operator, device_type, dtype)
    return "\n".join(lines)


def _explain_operator(operator: str, device_type: str, dtype: torch.dtype) -> list[str]:
    details = _TYPICAL_INPUTS[operator]
    if operator == "mixed_scale_layout":
        dtype = torch.bool
    reasons = {name: unsupported_reason(operator, name, device_type, dtype, **details) for name in BACKENDS}
    taken = next((name for name, reason in reasons.items() if reason is None), "none")
    missing = [f"    {name}: {reason}" for name, reason in reasons.items() if reason is not None]
    by_length = operator == "varlen_attention" and device_type == "cuda" and reasons["triton"] is None
    if by_length and taken == "cuda" and _is_hopper(torch.device("cuda")):
        longest = LONGEST_FOR_CUDA["varlen_attention_bwd"]
        taken = f"triton; cuda backward up to a max_seqlen of {longest}"
    return [f"  {operator}: takes {taken}", *missing]


def _version_of(package: str) -> str:
    try:
        return str(importlib.import_module(package).__version__)
    except ImportError as error:
        return f"missing ({error})"


def _native_cpu_info() -> str:
    try:
        native = importlib.import_module("msvit_kernels._C")
    except ImportError as error:
        return f"missing ({error})"
    return ", ".join(f"{key} {value}" for key, value in native.cpu_info().items())
