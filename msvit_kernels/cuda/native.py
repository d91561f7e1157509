"""The compiled kernels, msvit_kernels._cuda, and the device of the tensors that they take.

A build for tests without a GPU may run the kernels on the CPU: `build_info()["device"]` is then "cpu".
"""

import torch
from torch import Tensor

import msvit_kernels._cuda as kernels

__all__ = ["device_index", "device_unsupported", "kernels", "stream_of"]


def device_index(tensor: Tensor) -> int:
    """Number of the GPU that holds the tensor; 0 for a tensor on the CPU."""
    return tensor.get_device() if tensor.is_cuda else 0


def stream_of(tensor: Tensor) -> int:
    """Handle of the stream on which the caller's work for this device runs; 0 for a tensor on the CPU."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


def device_unsupported(device_type: str) -> str | None:
    """Why the kernels cannot take tensors of this device, or None."""
    if kernels.build_info()["device"] == "cpu":
        return None if device_type == "cpu" else f"is built for CPU tensors, got a {device_type} tensor"
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
