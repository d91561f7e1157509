"""Launchers of the CUDA attention kernels (csrc/cuda/varlen_attention_*.cu).

They allocate the results and hand addresses, sizes and strides to the compiled module. Nothing here waits for the
device or looks at what it holds, so that calls can be captured in a CUDA graph.
"""

import torch
from torch import Tensor

from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward, VarlenAttentionGradients
from msvit_kernels.cuda.native import device_index, device_unsupported, kernels, stream_of

OPTIONS = frozenset({"key_weight"})


def varlen_attention_fwd(call: VarlenAttention) -> tuple[Tensor, Tensor]:
    call = _aligned_call(call)
    q = call.q
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)
    kernels.varlen_attention_fwd(
        *_inputs(call),
        out.data_ptr(),
        lse.data_ptr(),
        q.dtype == torch.bfloat16,
        device_index(q),
        stream_of(q),
    )
    return out, lse


def varlen_attention_bwd(backward: VarlenAttentionBackward) -> VarlenAttentionGradients:
    call, dout = _aligned_call(backward.call), _aligned(backward.dout)
    q, k, v = call.q, call.k, call.v
    out, lse = backward.out.contiguous(), backward.lse.contiguous()
    dlse = None if backward.dlse is None else backward.dlse.contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    # One row of column sums per head, then one sum in a fixed order: adding them up with atomics would change bits.
    weights = q.shape[1], k.shape[0]
    dweight = torch.empty(weights, dtype=torch.float32, device=q.device) if backward.needs_dweight else None
    kernels.varlen_attention_bwd(
        *_inputs(call),
        dout.data_ptr(),
        *dout.stride()[:2],
        out.data_ptr(),
        lse.data_ptr(),
        0 if dlse is None else dlse.data_ptr(),
        dq.data_ptr(),
        dk.data_ptr(),
        dv.data_ptr(),
        delta.data_ptr(),
        0 if dweight is None else dweight.data_ptr(),
        q.dtype == torch.bfloat16,
        device_index(q),
        stream_of(q),
    )
    return VarlenAttentionGradients(dq, dk, dv, None if dweight is None else dweight.sum(0))


def _inputs(call: VarlenAttention) -> tuple[int | float, ...]:
    """The fields of `Attention` (csrc/cuda/varlen_attention.h) in order."""
    q, k, v, key_weight = call.q, call.k, call.v, call.key_weight
    total_q, num_heads, head_dim = q.shape
    return (
        q.data_ptr(),
        *q.stride()[:2],
        k.data_ptr(),
        *k.stride()[:2],
        v.data_ptr(),
        *v.stride()[:2],
        call.cu_seqlens_q.data_ptr(),
        call.cu_seqlens_k.data_ptr(),
        0 if key_weight is None else key_weight.data_ptr(),
        total_q,
        k.shape[0],
        call.cu_seqlens_q.shape[0] - 1,
        num_heads,
        head_dim,
        call.max_seqlen_q,
        call.max_seqlen_k,
        call.softmax_scale,
    )


def _aligned_call(call: VarlenAttention) -> VarlenAttention:
    return call._replace(q=_aligned(call.q), k=_aligned(call.k), v=_aligned(call.v))


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
