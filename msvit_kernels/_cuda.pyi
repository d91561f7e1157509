"""The CUDA kernels (csrc/bindings_cuda.cpp). Tensors are addresses, null ones are 0; strides count elements."""

from typing import Any, TypedDict, Unpack

from msvit_kernels.native_fields import AttentionFields

def build_info() -> dict[str, Any]: ...
def device_count() -> tuple[int, str]: ...
def device_properties(device: int) -> dict[str, Any]: ...

class Launch(TypedDict):
    """How the kernels are launched."""

    max_seqlen_q: int
    max_seqlen_k: int
    device: int
    stream: int

class VarlenAttentionInputs(AttentionFields, Launch):
    """What forward and backward take."""

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
