"""Launchers of the CUDA attention kernels (csrc/cuda/varlen_attention_*.cu).

They allocate the results and hand addresses, sizes and strides to the compiled module. Nothing here waits for the
device or looks at what it holds, so that calls can be captured in a CUDA graph.
"""

import torch
from torch import Tensor

from msvit_kernels.cuda.native import device_index, device_unsupported, kernels, stream_of


def varlen_attention_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    key_weight: Tensor | None,
    softmax_scale: float,
) -> tuple[Tensor, Tensor]:
    total_q, num_heads, _ = q.shape
    q, k, v = _aligned(q), _aligned(k), _aligned(v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((num_heads, total_q), dtype=torch.float32, device=q.device)
    kernels.varlen_attention_fwd(
        *_inputs(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_weight, softmax_scale),
        out.data_ptr(),
        lse.data_ptr(),
        q.dtype == torch.bfloat16,
        device_index(q),
        stream_of(q),
    )
    return out, lse


def varlen_attention_bwd(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    key_weight: Tensor | None,
    softmax_scale: float,
    needs_dweight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    num_heads = q.shape[1]
    dout, q, k, v = _aligned(dout), _aligned(q), _aligned(k), _aligned(v)
    out, lse = out.contiguous(), lse.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty_like(lse)
    # One row of column sums per head, then one sum in a fixed order: adding them up with atomics would change bits.
    dweight = torch.empty((num_heads, k.shape[0]), dtype=torch.float32, device=q.device) if needs_dweight else None
    kernels.varlen_attention_bwd(
        *_inputs(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_weight, softmax_scale),
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
    return dq, dk, dv, None if dweight is None else dweight.sum(0)


def _inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    key_weight: Tensor | None,
    softmax_scale: float,
) -> tuple[int | float, ...]:
    """The fields of `Attention` (csrc/cuda/varlen_attention.h) in order."""
    total_q, num_heads, head_dim = q.shape
    return (
        q.data_ptr(),
        *q.stride()[:2],
        k.data_ptr(),
        *k.stride()[:2],
        v.data_ptr(),
        *v.stride()[:2],
        cu_seqlens_q.data_ptr(),
        cu_seqlens_k.data_ptr(),
        0 if key_weight is None else key_weight.data_ptr(),
        total_q,
        k.shape[0],
        cu_seqlens_q.shape[0] - 1,
        num_heads,
        head_dim,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale,
    )


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
