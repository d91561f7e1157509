"""Launchers of the CUDA attention kernels (csrc/cuda/varlen_attention_*.cu).

They allocate the results and hand addresses, sizes and strides to the compiled module. Nothing here waits for the
device or looks at what it holds, so that calls can be captured in a CUDA graph.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward, VarlenAttentionGradients
from msvit_kernels.cuda.native import device_index, device_unsupported, kernels, stream_of

if TYPE_CHECKING:
    from msvit_kernels import _cuda

OPTIONS = frozenset({"key_weight"})


def varlen_attention_fwd(call: VarlenAttention) -> tuple[Tensor, Tensor]:
    call = _aligned_call(call)
    q = call.q
    out = _empty_rows(q)
    lse = torch.empty(q.shape[1], q.shape[0], dtype=torch.float32, device=q.device)
    kernels.varlen_attention_fwd(**_inputs(call), out=out.data_ptr(), lse=lse.data_ptr())
    return out, lse


def varlen_attention_bwd(backward: VarlenAttentionBackward) -> VarlenAttentionGradients:
    call, dout = _aligned_call(backward.call), _aligned(backward.dout)
    q, k, v = call.q, call.k, call.v
    out, lse = backward.out.contiguous(), backward.lse.contiguous()
    dlse = None if backward.dlse is None else backward.dlse.contiguous()
    dq, dk, dv = (_empty_rows(x) for x in (q, k, v))
    delta = torch.empty_like(lse)
    # One row of column sums per head, then one sum in a fixed order: adding them up with atomics would change bits.
    weights = q.shape[1], k.shape[0]
    dweight = torch.empty(weights, dtype=torch.float32, device=q.device) if backward.needs_dweight else None
    kernels.varlen_attention_bwd(
        **_inputs(call),
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


def _empty_rows(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _inputs(call: VarlenAttention) -> "_cuda.VarlenAttentionInputs":
    """The fields of `Attention` (csrc/cuda/varlen_attention.h), and how the kernels are launched."""
    q, k, v, key_weight = call.q, call.k, call.v, call.key_weight
    total_q, num_heads, head_dim = q.shape
    q_stride_token, q_stride_head, _ = q.stride()
    k_stride_token, k_stride_head, _ = k.stride()
    v_stride_token, v_stride_head, _ = v.stride()
    return {
        "q": q.data_ptr(),
        "q_stride_token": q_stride_token,
        "q_stride_head": q_stride_head,
        "k": k.data_ptr(),
        "k_stride_token": k_stride_token,
        "k_stride_head": k_stride_head,
        "v": v.data_ptr(),
        "v_stride_token": v_stride_token,
        "v_stride_head": v_stride_head,
        "cu_seqlens_q": call.cu_seqlens_q.data_ptr(),
        "cu_seqlens_k": call.cu_seqlens_k.data_ptr(),
        "key_weight": 0 if key_weight is None else key_weight.data_ptr(),
        "total_q": total_q,
        "total_k": k.shape[0],
        "batch": call.cu_seqlens_q.shape[0] - 1,
        "num_heads": num_heads,
        "head_dim": head_dim,
        "max_seqlen_q": call.max_seqlen_q,
        "max_seqlen_k": call.max_seqlen_k,
        "softmax_scale": call.softmax_scale,
        "is_bf16": q.dtype == torch.bfloat16,
        "device": device_index(q),
        "stream": stream_of(q),
    }


def _aligned_call(call: VarlenAttention) -> VarlenAttention:
    q, k, v = _aligned(call.q), _aligned(call.k), _aligned(call.v)
    return call if q is call.q and k is call.k and v is call.v else call._replace(q=q, k=k, v=v)


def _aligned(x: Tensor) -> Tensor:
    """`x`, or a copy where its rows do not begin at multiples of 16 bytes, in which the kernels read."""
    token, head, element = x.stride()
    return x if element == 1 and token % 8 == 0 and head % 8 == 0 and x.data_ptr() % 16 == 0 else x.contiguous()


def unsupported_reason(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    reason = device_unsupported(device_type)
    if reason is None and dtype not in (torch.bfloat16, torch.float16):
        return f"takes bf16 and fp16, not {dtype}"
    if reason is None and not (16 <= head_dim <= 128 and head_dim % 8 == 0):
        return f"takes head_dim 16 to 128 in multiples of 8, not {head_dim}"
    return reason
