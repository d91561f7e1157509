"""The compiled kernels: msvit_kernels._cuda, or the emulator's module where MSVIT_CUDA_EMULATOR names its file.

The emulator runs the same sources on the CPU, thread by thread, for tests on machines without a GPU (csrc/emulator/).
It is slow, takes CPU tensors only, and is looked for once, when this package is first used.
"""

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor


def _emulator() -> ModuleType | None:
    path = os.environ.get("MSVIT_CUDA_EMULATOR")
    if not path:
        return None
    spec = importlib.util.spec_from_file_location("_cuda_emulated", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"MSVIT_CUDA_EMULATOR: expected the path of a compiled module, got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules["_cuda_emulated"] = module
    spec.loader.exec_module(module)
    return module


emulated = _emulator()
if TYPE_CHECKING:
    from msvit_kernels import _cuda as kernels
else:
    kernels = emulated or importlib.import_module("msvit_kernels._cuda")


def device_index(tensor: Tensor) -> int:
    """Number of the GPU that holds the tensor; 0 in the emulator."""
    return tensor.get_device() if tensor.is_cuda else 0


def stream_of(tensor: Tensor) -> int:
    """Handle of the stream on which the caller's work for this device runs; 0 in the emulator."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def device_unsupported(device_type: str) -> str | None:
    """Why the kernels cannot take tensors of this device, or None."""
    if emulated is not None:
        return None if device_type == "cpu" else f"the emulator takes CPU tensors, got a {device_type} tensor"
    if device_type != "cuda" or torch.version.cuda is None:
        return f"runs on NVIDIA GPUs, got a {device_type} tensor"
    return _capability_unsupported()


def _capability_unsupported() -> str | None:
    """Reason why the build lacks code for a GPU that torch sees, or None; any of these GPUs may get the call."""
    built = [int(arch.rstrip("af")) for arch in kernels.build_info()["architectures"].split(",")]
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        found = 10 * major + minor
        # Code runs on later minor versions of its major version; code for 90a and 100a runs on that version alone.
        if not any(arch // 10 == major and arch <= found for arch in built):
            archs = kernels.build_info()["architectures"]
            return f"is built for architectures {archs}, GPU {index} has {found}: set MSVIT_CUDA_ARCHS and build again"
    return None
