"""The attention arguments that both native modules take, `_C` (CPU) and `_cuda` (GPU)."""

from typing import TypedDict

import torch
from torch import Tensor

from msvit_kernels.calls import VarlenAttention


class AttentionFields(TypedDict):
    """Arguments of the native attention kernels, forward and backward.

    Tensors are passed as addresses, 0 for None; strides are in elements.
    """

    q: int
    k: int
    v: int
    cu_seqlens_q: int
    cu_seqlens_k: int
    key_weight: int
    batch: int
    total_q: int
    total_k: int
    num_heads: int
    head_dim: int
    q_stride_token: int
    q_stride_head: int
    k_stride_token: int
    k_stride_head: int
    v_stride_token: int
    v_stride_head: int
    softmax_scale: float
    is_bf16: bool


def attention_fields(call: VarlenAttention) -> AttentionFields:
    """The arguments of `call`, in the order in which the native modules match them fastest."""
    q, k, v, key_weight = call.q, call.k, call.v, call.key_weight
    total_q, num_heads, head_dim = q.shape
    q_stride_token, q_stride_head, _ = q.stride()
    k_stride_token, k_stride_head, _ = k.stride()
    v_stride_token, v_stride_head, _ = v.stride()
    return {
        "q": q.data_ptr(),
        "k": k.data_ptr(),
        "v": v.data_ptr(),
        "cu_seqlens_q": call.cu_seqlens_q.data_ptr(),
        "cu_seqlens_k": call.cu_seqlens_k.data_ptr(),
        "key_weight": 0 if key_weight is None else key_weight.data_ptr(),
        "batch": call.cu_seqlens_q.shape[0] - 1,
        "total_q": total_q,
        "total_k": k.shape[0],
        "num_heads": num_heads,
        "head_dim": head_dim,
        "q_stride_token": q_stride_token,
        "q_stride_head": q_stride_head,
        "k_stride_token": k_stride_token,
        "k_stride_head": k_stride_head,
        "v_stride_token": v_stride_token,
        "v_stride_head": v_stride_head,
        "softmax_scale": call.softmax_scale,
        "is_bf16": q.dtype == torch.bfloat16,
    }


def empty_rows(x: Tensor) -> Tensor:
    """Uninitialised contiguous tensor with the shape, dtype and device of `x`."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)
