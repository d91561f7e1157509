"""Launchers of the C++ attention kernels (csrc/cpu/varlen_attention_fwd.cpp and _bwd.cpp).

They allocate the results and hand addresses, sizes and strides to msvit_kernels._C. The number of threads is
torch.get_num_threads(); it changes the time, never a bit of the result.
"""

import torch
from torch import Tensor

from msvit_kernels import _C
from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward, VarlenAttentionGradients

OPTIONS = frozenset({"key_weight"})


def varlen_attention_fwd(call: VarlenAttention) -> tuple[Tensor, Tensor]:
    q, k, v, key_weight = call.q, call.k, call.v, call.key_weight
    total_q, num_heads, head_dim = q.shape
    out = torch.empty((total_q, num_heads, head_dim), dtype=q.dtype)
    lse = torch.empty((num_heads, total_q), dtype=torch.float32)
    _C.varlen_attention_fwd(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        call.cu_seqlens_q.data_ptr(),
        call.cu_seqlens_k.data_ptr(),
        0 if key_weight is None else key_weight.data_ptr(),
        out.data_ptr(),
        lse.data_ptr(),
        call.cu_seqlens_q.shape[0] - 1,
        total_q,
        k.shape[0],
        num_heads,
        head_dim,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        call.softmax_scale,
        q.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return out, lse


def varlen_attention_bwd(backward: VarlenAttentionBackward) -> VarlenAttentionGradients:
    call, out, lse, dout, dlse, needs_dweight = backward
    q, k, v, key_weight = call.q, call.k, call.v, call.key_weight
    total_q, num_heads, head_dim = q.shape
    if dout.stride(2) != 1:
        dout = dout.contiguous()
    out, lse = out.contiguous(), lse.contiguous()
    if dlse is not None:
        dlse = dlse.contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    dweight = torch.empty(k.shape[0], dtype=torch.float32) if needs_dweight else None
    _C.varlen_attention_bwd(
        dout.data_ptr(),
        0 if dlse is None else dlse.data_ptr(),
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        out.data_ptr(),
        lse.data_ptr(),
        call.cu_seqlens_q.data_ptr(),
        call.cu_seqlens_k.data_ptr(),
        0 if key_weight is None else key_weight.data_ptr(),
        dq.data_ptr(),
        dk.data_ptr(),
        dv.data_ptr(),
        0 if dweight is None else dweight.data_ptr(),
        call.cu_seqlens_q.shape[0] - 1,
        total_q,
        k.shape[0],
        num_heads,
        head_dim,
        *dout.stride()[:2],
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        call.softmax_scale,
        q.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )
    return VarlenAttentionGradients(dq, dk, dv, dweight)


def unsupported_reason(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    if device_type != "cpu":
        return f"runs on the CPU, got a {device_type} tensor"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16, got {dtype}"
    if not 16 <= head_dim <= 128 or head_dim % 8:
        return f"head_dim must be a multiple of 8 from 16 to 128, got {head_dim}"
    return None
