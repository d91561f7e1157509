"""Launchers of the C++ attention kernels (csrc/cpu/varlen_attention_fwd.cpp and _bwd.cpp).

They allocate the results and pass addresses, sizes and strides to msvit_kernels._C. The kernels run on
torch.get_num_threads() threads; the results have the same bits for any number of them.
"""

import torch
from torch import Tensor

from msvit_kernels import _C
from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward, VarlenAttentionGradients, head_dim_fault
from msvit_kernels.native_fields import attention_fields, empty_rows

OPTIONS = frozenset({"key_weight"})


def varlen_attention_fwd(call: VarlenAttention) -> tuple[Tensor, Tensor]:
    """Computes out [total_q, num_heads, head_dim] in the dtype of q, and lse, float32 [num_heads, total_q]."""
    total_q, num_heads, _ = call.q.shape
    out = empty_rows(call.q)
    lse = torch.empty(num_heads, total_q, dtype=torch.float32)
    _C.varlen_attention_fwd(
        **attention_fields(call), num_threads=torch.get_num_threads(), out=out.data_ptr(), lse=lse.data_ptr()
    )
    return out, lse


def varlen_attention_bwd(backward: VarlenAttentionBackward) -> VarlenAttentionGradients:
    """Computes the gradients of q, k and v, and that of key_weight, float32 [total_k], if it is wanted."""
    call, out, lse, dout, dlse, needs_dweight = backward
    if dout.stride(2) != 1:
        dout = dout.contiguous()
    out, lse = out.contiguous(), lse.contiguous()
    if dlse is not None:
        dlse = dlse.contiguous()
    dq, dk, dv = (empty_rows(x) for x in (call.q, call.k, call.v))
    dweight = torch.empty(call.k.shape[0], dtype=torch.float32) if needs_dweight else None
    _C.varlen_attention_bwd(
        **attention_fields(call),
        num_threads=torch.get_num_threads(),
        dout=dout.data_ptr(),
        dout_stride_token=dout.stride(0),
        dout_stride_head=dout.stride(1),
        dlse=0 if dlse is None else dlse.data_ptr(),
        out=out.data_ptr(),
        lse=lse.data_ptr(),
        dq=dq.data_ptr(),
        dk=dk.data_ptr(),
        dv=dv.data_ptr(),
        dweight=0 if dweight is None else dweight.data_ptr(),
    )
    return VarlenAttentionGradients(dq, dk, dv, dweight)


def unsupported_reason(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Reason why q, k and v of this dtype and head_dim cannot run here, or None."""
    if device_type != "cpu":
        return f"runs on the CPU, got a {device_type} tensor"
    if dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16, got {str(dtype).removeprefix('torch.')}"
    fault = head_dim_fault(head_dim)
    return f"takes {fault}" if fault else None
