"""What the Triton operators share: launching, the target architecture, and the reasons for a refusal.

Every kernel goes through `launch`, so that `aot.py` can compile exactly what the launchers ask for, on a machine
without a GPU, by handing them meta tensors and a hook instead of a device.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any

import torch

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
INTERPRETER_ARCH = 0  # launch_config's name for the interpreter, which has no registers to run out of

compile_hook: Callable[..., None] | None = None
compile_arch = 0


def launch(kernel: Any, grid: tuple[int, ...], tensor: torch.Tensor, args: tuple, **options: Any) -> None:
    """Run `kernel` over `grid` on the device of `tensor`; an empty grid is no work, not an error."""
    if 0 in grid:
        return
    options["enable_fp_fusion"] = True  # the default of Triton changes from version to version
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
    """80, 90, 100, ...; 0 in the interpreter."""
    if compile_hook is not None:
        return compile_arch
    return _capability(tensor.device.index) if tensor.is_cuda else INTERPRETER_ARCH


def interpreting() -> bool:
    """True where the kernels were decorated for the interpreter: Triton looks at the variable when they are defined."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def device_unsupported(device_type: str) -> str | None:
    """Why the Triton backend cannot take tensors of this device, or None."""
    if device_type == "cuda" and torch.version.cuda is not None:
        return None
    if device_type == "cpu" and interpreting():
        return None
    return f"runs on NVIDIA GPUs, or on the CPU under TRITON_INTERPRET=1; the tensors are on {device_type!r}"


def dtype_unsupported(dtype: torch.dtype) -> str | None:
    """Why the Triton backend cannot take this floating dtype, or None."""
    if dtype in FLOAT_DTYPES:
        return None
    return f"takes fp32, bf16 and fp16, not {dtype}"
