"""The CPU kernels (csrc/bindings_cpu.cpp). Tensors are passed as addresses, 0 for None; strides are in elements."""

from typing import Any, TypedDict, Unpack

from msvit_kernels.native_fields import AttentionFields

def cpu_info() -> dict[str, Any]: ...
def valid_offsets(offsets: int, n: int, total: int, max_seqlen: int) -> bool: ...
def valid_packing(
    offsets: int, n: int, total: int, max_seqlen: int, num_prefix: int, num_tokens: int, batch_index: int
) -> bool: ...
def mixed_scale_layout_matches(
    fine_mask: int,
    region_start: int,
    cu_seqlens: int,
    batch_index: int,
    token_index: int,
    batch: int,
    rows: int,
    columns: int,
    total_tokens: int,
    scale_factor: int,
    num_prefix: int,
) -> bool: ...
def fma_peak(iterations: int, num_threads: int, bf16: bool) -> tuple[float, float]: ...

class VarlenAttentionInputs(AttentionFields):
    """Arguments of forward and backward."""

    num_threads: int

def varlen_attention_fwd(*, out: int, lse: int, **inputs: Unpack[VarlenAttentionInputs]) -> None: ...
def varlen_attention_bwd(
    *,
    dout: int,
    dout_stride_token: int,
    dout_stride_head: int,
    dlse: int,
    out: int,
    lse: int,
    dq: int,
    dk: int,
    dv: int,
    dweight: int,
    **inputs: Unpack[VarlenAttentionInputs],
) -> None: ...

class MixedScaleEmbedInputs(TypedDict):
    """Arguments of forward and backward."""

    images: int
    batch_index: int
    token_index: int
    batch: int
    height: int
    width: int
    total_tokens: int
    patch_size: int
    scale_factor: int
    num_prefix: int
    pixel_type: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weight: int
    dim: int
    is_bf16: bool
    num_threads: int

def mixed_scale_embed_fwd(*, bias: int, table: int, out: int, **inputs: Unpack[MixedScaleEmbedInputs]) -> None: ...
def mixed_scale_embed_bwd(
    *,
    dout: int,
    fine_mask: int,
    region_start: int,
    cu_seqlens: int,
    dimages: int,
    dweight: int,
    dbias: int,
    dtable: int,
    **inputs: Unpack[MixedScaleEmbedInputs],
) -> None: ...
def mixed_scale_layout_offsets(
    *,
    fine_mask: int,
    num_tokens: int,
    cu_seqlens: int,
    region_start: int,
    batch: int,
    num_regions: int,
    scale_factor: int,
    num_prefix: int,
    num_threads: int,
) -> None: ...
def mixed_scale_layout_fwd(
    *,
    fine_mask: int,
    cu_seqlens: int,
    region_start: int,
    batch_index: int,
    token_index: int,
    batch: int,
    rows: int,
    columns: int,
    total_tokens: int,
    scale_factor: int,
    num_prefix: int,
    num_threads: int,
) -> None: ...

class UnpackToGridFields(TypedDict):
    """Arguments of forward and backward; forward writes `grid` from `tokens`, backward `tokens` from `grid`."""

    fine_mask: int
    region_start: int
    tokens: int
    grid: int
    batch: int
    rows: int
    columns: int
    scale_factor: int
    total_tokens: int
    dim: int
    token_stride: int
    is_bf16: bool
    num_threads: int

def unpack_to_grid_fwd(**fields: Unpack[UnpackToGridFields]) -> None: ...
def unpack_to_grid_bwd(**fields: Unpack[UnpackToGridFields]) -> None: ...
