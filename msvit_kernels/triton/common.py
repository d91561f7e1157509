"""Helpers of the Triton operators: launches, the target architecture, and unsupported devices and dtypes.

Every kernel is started by `launch`. `aot.py` sets `compile_hook` and calls the launchers with meta tensors, and so
compiles exactly the kernels that they start, on a machine without a GPU.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import torch

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETER_ARCH = 0  # stands for the interpreter, which has no limit on registers, in launch_config

compile_hook: Callable[..., None] | None = None
compile_arch = 0


def launch(kernel: Any, grid: tuple[int, ...], tensor: torch.Tensor, args: tuple, **options: Any) -> None:
    """Starts `kernel` over `grid` on the device of `tensor`; does nothing if the grid is empty."""
    if 0 in grid:
        return
    options["enable_fp_fusion"] = True  # set here because Triton's default differs between versions
    if compile_hook is not None:
        compile_hook(kernel, args, options)
        return
    guard = torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
    with guard:
        kernel[grid](*args, **options)


@functools.cache
def _capability(index: int | None) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return major * 10 + minor


def arch_of(tensor: torch.Tensor) -> int:
    """Compute capability of the device of `tensor` (80, 90, 100, ...); INTERPRETER_ARCH in the interpreter."""
    if compile_hook is not None:
        return compile_arch
    return _capability(tensor.device.index) if tensor.is_cuda else INTERPRETER_ARCH


def interpreting() -> bool:
    """Whether kernels are made for the interpreter. Triton reads the variable once, when a kernel is defined."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def device_unsupported(device_type: str) -> str | None:
    """Reason why tensors on this device cannot run in Triton, or None."""
    if device_type == "cuda" and torch.version.cuda is not None:
        return None
    if device_type == "cpu" and interpreting():
        return None
    return f"runs on NVIDIA GPUs, or on the CPU if TRITON_INTERPRET=1, got a {device_type} tensor"


def dtype_unsupported(dtype: torch.dtype) -> str | None:
    """Reason why this floating-point dtype cannot run in Triton, or None."""
    if dtype in FLOAT_DTYPES:
        return None
    return f"takes float32, bfloat16 and float16, got {str(dtype).removeprefix('torch.')}"
