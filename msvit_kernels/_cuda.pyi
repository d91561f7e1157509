"""The CUDA kernels (csrc/bindings_cuda.cpp). Tensors are passed as addresses, 0 for None; strides are in elements."""

from typing import Any, TypedDict, Unpack

from msvit_kernels.native_fields import AttentionFields

def build_info() -> dict[str, Any]: ...
def device_count() -> tuple[int, str]: ...
def device_properties(device: int) -> dict[str, Any]: ...

class Launch(TypedDict):
    """Bounds that size the launch, and where it goes: number of the GPU and handle of the stream."""

    max_seqlen_q: int
    max_seqlen_k: int
    device: int
    stream: int

class VarlenAttentionInputs(AttentionFields, Launch):
    """Arguments of forward and backward."""

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
