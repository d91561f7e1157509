"""The CUDA kernels (csrc/bindings_cuda.cpp). Tensors are addresses, null ones are 0; strides count elements."""

from typing import Any, TypedDict, Unpack

def build_info() -> dict[str, Any]: ...
def device_count() -> tuple[int, str]: ...
def device_properties(device: int) -> dict[str, Any]: ...

class VarlenAttentionInputs(TypedDict):
    """What forward and backward take."""

    q: int
    q_stride_token: int
    q_stride_head: int
    k: int
    k_stride_token: int
    k_stride_head: int
    v: int
    v_stride_token: int
    v_stride_head: int
    cu_seqlens_q: int
    cu_seqlens_k: int
    key_weight: int
    total_q: int
    total_k: int
    batch: int
    num_heads: int
    head_dim: int
    max_seqlen_q: int
    max_seqlen_k: int
    softmax_scale: float
    is_bf16: bool
    device: int
    stream: int

def varlen_attention_fwd(*, out: int, lse: int, **inputs: Unpack[VarlenAttentionInputs]) -> None: ...
def varlen_attention_bwd(
    *,
    dout: int,
    dout_stride_token: int,
    dout_stride_head: int,
    out: int,
    lse: int,
    dlse: int,
    dq: int,
    dk: int,
    dv: int,
    delta: int,
    dweight: int,
    **inputs: Unpack[VarlenAttentionInputs],
) -> None: ...
