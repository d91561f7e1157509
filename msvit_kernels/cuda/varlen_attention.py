"""Launchers of the CUDA attention kernels (csrc/cuda/varlen_attention_*.cu).

They allocate the results and pass addresses, sizes and strides to the compiled module. They neither wait for the GPU
nor read its memory, so that calls can be captured in a CUDA graph.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward, VarlenAttentionGradients, head_dim_fault
from msvit_kernels.cuda.native import device_index, device_unsupported, kernels, stream_of
from msvit_kernels.native_fields import attention_fields, empty_rows

if TYPE_CHECKING:
    from msvit_kernels import _cuda

OPTIONS = frozenset({"key_weight"})


def varlen_attention_fwd(call: VarlenAttention) -> tuple[Tensor, Tensor]:
    """Computes out [total_q, num_heads, head_dim] in the dtype of q, and lse, float32 [num_heads, total_q]."""
    call = _aligned_call(call)
    q = call.q
    out = empty_rows(q)
    lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)
    kernels.varlen_attention_fwd(**attention_fields(call), **_launch(call), out=out.data_ptr(), lse=lse.data_ptr())
    return out, lse


def varlen_attention_bwd(backward: VarlenAttentionBackward) -> VarlenAttentionGradients:
    """Computes the gradients of q, k and v, and that of key_weight, float32 [total_k], if it is wanted."""
    call, dout = _aligned_call(backward.call), _aligned(backward.dout)
    q, k, v = call.q, call.k, call.v
    out, lse = backward.out.contiguous(), backward.lse.contiguous()
    dlse = None if backward.dlse is None else backward.dlse.contiguous()
    dq, dk, dv = (empty_rows(x) for x in (q, k, v))
    delta = torch.empty_like(lse)
    # The kernels write one row per head, and the rows are added in a fixed order. Atomics would not be deterministic.
    weights = q.shape[1], k.shape[0]
    dweight = torch.empty(weights, dtype=torch.float32, device=q.device) if backward.needs_dweight else None
    kernels.varlen_attention_bwd(
        **attention_fields(call),
        **_launch(call),
        dout=dout.data_ptr(),
        dout_stride_token=dout.stride(0),
        dout_stride_head=dout.stride(1),
        out=out.data_ptr(),
        lse=lse.data_ptr(),
        dlse=0 if dlse is None else dlse.data_ptr(),
        dq=dq.data_ptr(),
        dk=dk.data_ptr(),
        dv=dv.data_ptr(),
        delta=delta.data_ptr(),
        dweight=0 if dweight is None else dweight.data_ptr(),
    )
    return VarlenAttentionGradients(dq, dk, dv, None if dweight is None else dweight.sum(0))


def _launch(call: VarlenAttention) -> "_cuda.Launch":
    """The arguments that size the launch and say where it goes."""
    return {
        "max_seqlen_q": call.max_seqlen_q,
        "max_seqlen_k": call.max_seqlen_k,
        "device": device_index(call.q),
        "stream": stream_of(call.q),
    }


def _aligned_call(call: VarlenAttention) -> VarlenAttention:
    """`call` with q, k and v `_aligned`."""
    q, k, v = _aligned(call.q), _aligned(call.k), _aligned(call.v)
    return call if q is call.q and k is call.k and v is call.v else call._replace(q=q, k=k, v=v)


def _aligned(x: Tensor) -> Tensor:
    """`x`, or a contiguous copy if its rows do not begin at multiples of 16 bytes, as the kernels' loads require."""
    token, head, element = x.stride()
    return x if element == 1 and token % 8 == 0 and head % 8 == 0 and x.data_ptr() % 16 == 0 else x.contiguous()


def unsupported_reason(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Reason why q, k and v of this dtype and head_dim cannot run here, or None."""
    reason = device_unsupported(device_type)
    if reason is None and dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 and float16, got {str(dtype).removeprefix('torch.')}"
    if reason is None and dtype == torch.float16 and not kernels.build_info()["fp16"]:
        return "is built without fp16 kernels (MSVIT_CUDA_FP16=OFF)"
    fault = head_dim_fault(head_dim)
    return reason or (f"takes {fault}" if fault else None)
