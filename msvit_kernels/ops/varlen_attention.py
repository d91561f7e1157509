"""The operators as torch sees them: schema, fake implementation, backward formula and choice of backend, once each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from msvit_kernels import dispatch, validation

_lib = torch.library.Library("msvit", "DEF")

_lib.define(
    "varlen_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, int max_seqlen_q, "
    "int max_seqlen_k, Tensor? key_weight, float softmax_scale, str? backend) -> (Tensor out, Tensor lse)"
)
_lib.define(
    "varlen_attention_bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    "Tensor cu_seqlens_q, Tensor cu_seqlens_k, int max_seqlen_q, int max_seqlen_k, Tensor? key_weight, "
    "float softmax_scale, bool needs_dweight, str? backend) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dweight)"
)
_lib.define(
    "mixed_scale_layout_offsets(Tensor fine_mask, int scale_factor, int num_prefix, str? backend) "
    "-> (Tensor num_tokens, Tensor cu_seqlens, Tensor region_start)"
)
_lib.define(
    "mixed_scale_layout(Tensor fine_mask, Tensor cu_seqlens, Tensor region_start, SymInt total_tokens, "
    "int scale_factor, int num_prefix, str? backend) -> (Tensor batch_index, Tensor token_index)"
)
_lib.define(
    "mixed_scale_embed(Tensor images, Tensor fine_mask, Tensor region_start, Tensor cu_seqlens, Tensor batch_index, "
    "Tensor token_index, Tensor weight, Tensor? bias, Tensor table, int patch_size, int scale_factor, "
    "int num_prefix, float[]? mean, float[]? std, str? backend) -> Tensor"
)
_lib.define(
    "mixed_scale_embed_bwd(Tensor dout, Tensor images, Tensor fine_mask, Tensor region_start, Tensor cu_seqlens, "
    "Tensor batch_index, Tensor token_index, Tensor weight, int patch_size, int scale_factor, int num_prefix, "
    "float[]? mean, float[]? std, bool needs_images, bool needs_weight, bool needs_bias, bool needs_table, "
    "str? backend) -> (Tensor dimages, Tensor dweight, Tensor dbias, Tensor dtable)"
)
_lib.define(
    "unpack_to_grid(Tensor tokens, Tensor fine_mask, Tensor region_start, int scale_factor, str? backend) -> Tensor"
)
_lib.define(
    "unpack_to_grid_bwd(Tensor dgrid, Tensor fine_mask, Tensor region_start, SymInt total_tokens, int scale_factor, "
    "str? backend) -> Tensor"
)


def _register(
    name: str, implementation: Callable[..., Any], fake: Callable[..., Any], autograd: tuple[Any, Any] | None = None
) -> None:
    _lib.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"msvit::{name}", fake, lib=_lib)
    if autograd is not None:
        backward, setup_context = autograd
        torch.library.register_autograd(f"msvit::{name}", backward, setup_context=setup_context, lib=_lib)


def _none_as_empty(x: Tensor | None, like: Tensor) -> Tensor:
    # An operator's outputs are tensors; a gradient that nobody asked for is one of no elements.
    return like.new_empty(0) if x is None else x


def _statistics_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


# ---- varlen_attention


def varlen_attention_unrecorded(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    key_weight: Tensor | None,
    softmax_scale: float,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """What runs below autograd; the public function calls it directly where torch has nothing to record."""
    if validation.checks_contents(q):
        validation.check_offsets("cu_seqlens", cu_seqlens_q, q.shape[0], max_seqlen_q)
        if cu_seqlens_k is not cu_seqlens_q:
            validation.check_offsets("cu_seqlens_k", cu_seqlens_k, k.shape[0], max_seqlen_k)
        if key_weight is not None:
            validation.check_key_weight(key_weight)
    # A bound may be far above what there is; it chooses kernels and sizes their grids.
    max_seqlen_q, max_seqlen_k = min(max_seqlen_q, q.shape[0]), min(max_seqlen_k, k.shape[0])
    longest = max(max_seqlen_q, max_seqlen_k)
    forward = dispatch.attention_function("varlen_attention_fwd", backend, longest, q.device, q.dtype, q.shape[2])
    result: tuple[Tensor, Tensor] = forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, key_weight, softmax_scale
    )
    return result


def _varlen_attention_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    total_tokens, num_heads, _head_dim = q.shape
    return q.new_empty(q.shape), q.new_empty((num_heads, total_tokens), dtype=_statistics_dtype(q))


def _varlen_attention_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_q, max_k, key_weight, softmax_scale, backend = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens_q, cu_seqlens_k, key_weight)
    ctx.arguments = max_q, max_k, softmax_scale, backend
    ctx.set_materialize_grads(False)


def _varlen_attention_backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k, key_weight = ctx.saved_tensors
    max_q, max_k, softmax_scale, backend = ctx.arguments
    needs_dweight = ctx.needs_input_grad[7]
    dq, dk, dv, dweight = torch.ops.msvit.varlen_attention_bwd(
        torch.zeros_like(out) if dout is None else dout, dlse, q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k,
        max_q, max_k, key_weight, softmax_scale, needs_dweight, backend,
    )  # fmt: skip
    return dq, dk, dv, None, None, None, None, dweight if needs_dweight else None, None, None


def _varlen_attention_bwd(
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
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *arguments, backend = arguments  # type: ignore[assignment]
    max_seqlen_q, max_seqlen_k = min(max_seqlen_q, q.shape[0]), min(max_seqlen_k, k.shape[0])
    longest = max(max_seqlen_q, max_seqlen_k)
    backward = dispatch.attention_function("varlen_attention_bwd", backend, longest, q.device, q.dtype, q.shape[2])
    tensors = q, k, v, out, lse, cu_seqlens_q, cu_seqlens_k
    dq, dk, dv, dweight = backward(dout, dlse, *tensors, max_seqlen_q, max_seqlen_k, *arguments)
    return dq, dk, dv, _none_as_empty(dweight, like=q)


def _varlen_attention_bwd_fake(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    needs_dweight = arguments[-2]
    dweight = k.new_empty(k.shape[0], dtype=lse.dtype) if needs_dweight else q.new_empty(0)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dweight


_register(
    "varlen_attention",
    varlen_attention_unrecorded,
    _varlen_attention_fake,
    (_varlen_attention_backward, _varlen_attention_setup),
)
_register("varlen_attention_bwd", _varlen_attention_bwd, _varlen_attention_bwd_fake)


# ---- mixed_scale_layout


def _mixed_scale_layout_offsets(
    fine_mask: Tensor, scale_factor: int, num_prefix: int, backend: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    offsets = dispatch.resolve_function(
        "mixed_scale_layout", "mixed_scale_layout_offsets", backend, fine_mask.device.type, fine_mask.dtype
    )
    result: tuple[Tensor, Tensor, Tensor] = offsets(fine_mask, scale_factor, num_prefix)
    return result


def _mixed_scale_layout_offsets_fake(fine_mask: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, height, width = fine_mask.shape
    empty = lambda *size: fine_mask.new_empty(size, dtype=torch.int32)  # noqa: E731
    return empty(batch), empty(batch + 1), empty(batch, height * width)


def _mixed_scale_layout(
    fine_mask: Tensor,
    cu_seqlens: Tensor,
    region_start: Tensor,
    total_tokens: int,
    scale_factor: int,
    num_prefix: int,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    if validation.checks_contents(fine_mask):
        validation.check_total(cu_seqlens, total_tokens)
    forward = dispatch.resolve_function(
        "mixed_scale_layout", "mixed_scale_layout_fwd", backend, fine_mask.device.type, fine_mask.dtype
    )
    result: tuple[Tensor, Tensor] = forward(fine_mask, cu_seqlens, region_start, total_tokens, scale_factor, num_prefix)
    return result


def _mixed_scale_layout_fake(
    fine_mask: Tensor, cu_seqlens: Tensor, region_start: Tensor, total_tokens: int, *_: Any
) -> tuple[Tensor, Tensor]:
    return cu_seqlens.new_empty(total_tokens), cu_seqlens.new_empty(total_tokens)


_register("mixed_scale_layout_offsets", _mixed_scale_layout_offsets, _mixed_scale_layout_offsets_fake)
_register("mixed_scale_layout", _mixed_scale_layout, _mixed_scale_layout_fake)


# ---- mixed_scale_embed


def _mixed_scale_embed(
    images: Tensor,
    fine_mask: Tensor,
    region_start: Tensor,
    cu_seqlens: Tensor,
    batch_index: Tensor,
    token_index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: Tensor,
    patch_size: int,
    scale_factor: int,
    num_prefix: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    backend: str | None,
) -> Tensor:
    if validation.checks_contents(images):
        validation.check_indices("layout.batch_index", batch_index, images.shape[0])
        validation.check_indices("layout.token_index", token_index, table.shape[0])
    forward = dispatch.resolve_function(
        "mixed_scale_embed",
        "mixed_scale_embed_fwd",
        backend,
        images.device.type,
        weight.dtype,
        images_dtype=images.dtype,
    )
    result: Tensor = forward(
        images, batch_index, token_index, weight, bias, table, patch_size, scale_factor, num_prefix, mean, std
    )
    return result


def _mixed_scale_embed_fake(
    images: Tensor,
    fine_mask: Tensor,
    region_start: Tensor,
    cu_seqlens: Tensor,
    batch_index: Tensor,
    token_index: Tensor,
    weight: Tensor,
    *_: Any,
) -> Tensor:
    return weight.new_empty((token_index.shape[0], weight.shape[0]))


def _mixed_scale_embed_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors, bias, arguments = inputs[:7], inputs[7], inputs[9:]
    ctx.save_for_backward(*tensors)
    ctx.arguments = arguments
    ctx.has_bias = bias is not None


def _mixed_scale_embed_backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    *arguments, backend = ctx.arguments
    needs_images, needs_weight, needs_table = (ctx.needs_input_grad[i] for i in (0, 6, 8))
    needs_bias = ctx.has_bias and ctx.needs_input_grad[7]
    needs = needs_images, needs_weight, needs_bias, needs_table
    gradients = torch.ops.msvit.mixed_scale_embed_bwd(dout, *ctx.saved_tensors, *arguments, *needs, backend)
    dimages, dweight, dbias, dtable = (g if needed else None for g, needed in zip(gradients, needs, strict=True))
    return dimages, None, None, None, None, None, dweight, dbias, dtable, None, None, None, None, None, None


def _mixed_scale_embed_bwd(
    dout: Tensor,
    images: Tensor,
    fine_mask: Tensor,
    region_start: Tensor,
    cu_seqlens: Tensor,
    batch_index: Tensor,
    token_index: Tensor,
    weight: Tensor,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *arguments, backend = arguments  # type: ignore[assignment]
    backward = dispatch.resolve_function(
        "mixed_scale_embed",
        "mixed_scale_embed_bwd",
        backend,
        images.device.type,
        weight.dtype,
        images_dtype=images.dtype,
    )
    layout = fine_mask, region_start, cu_seqlens, batch_index, token_index
    gradients = backward(dout.contiguous(), images, *layout, weight, *arguments)
    dimages, dweight, dbias, dtable = (_none_as_empty(g, like=weight) for g in gradients)
    return dimages, dweight, dbias, dtable


def _mixed_scale_embed_bwd_fake(
    dout: Tensor,
    images: Tensor,
    fine_mask: Tensor,
    region_start: Tensor,
    cu_seqlens: Tensor,
    batch_index: Tensor,
    token_index: Tensor,
    weight: Tensor,
    patch_size: int,
    scale_factor: int,
    num_prefix: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    needs_images: bool,
    needs_weight: bool,
    needs_bias: bool,
    needs_table: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_coarse = region_start.shape[1]
    rows = num_prefix + num_coarse * (1 + scale_factor**2)
    nothing = weight.new_empty(0)
    return (
        images.new_empty(images.shape) if needs_images else nothing,
        weight.new_empty(weight.shape) if needs_weight else nothing.clone(),
        weight.new_empty(weight.shape[0]) if needs_bias else nothing.clone(),
        weight.new_empty((rows, weight.shape[0])) if needs_table else nothing.clone(),
    )


_register(
    "mixed_scale_embed",
    _mixed_scale_embed,
    _mixed_scale_embed_fake,
    (_mixed_scale_embed_backward, _mixed_scale_embed_setup),
)
_register("mixed_scale_embed_bwd", _mixed_scale_embed_bwd, _mixed_scale_embed_bwd_fake)


# ---- unpack_to_grid


def _unpack_to_grid(
    tokens: Tensor, fine_mask: Tensor, region_start: Tensor, scale_factor: int, backend: str | None
) -> Tensor:
    if validation.checks_contents(tokens):
        validation.check_region_start(region_start, fine_mask, tokens.shape[0], scale_factor)
    forward = dispatch.resolve_function(
        "unpack_to_grid", "unpack_to_grid_fwd", backend, tokens.device.type, tokens.dtype
    )
    result: Tensor = forward(tokens, fine_mask, region_start, scale_factor)
    return result


def _unpack_to_grid_fake(
    tokens: Tensor, fine_mask: Tensor, region_start: Tensor, scale_factor: int, backend: str | None
) -> Tensor:
    batch, height, width = fine_mask.shape
    return tokens.new_empty((batch, tokens.shape[1], height * scale_factor, width * scale_factor))


def _unpack_to_grid_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tokens, fine_mask, region_start, scale_factor, backend = inputs
    ctx.save_for_backward(fine_mask, region_start)
    ctx.arguments = tokens.shape[0], scale_factor, backend


def _unpack_to_grid_backward(ctx: Any, dgrid: Tensor) -> tuple[Tensor | None, ...]:
    dtokens = torch.ops.msvit.unpack_to_grid_bwd(dgrid, *ctx.saved_tensors, *ctx.arguments)
    return dtokens, None, None, None, None


def _unpack_to_grid_bwd(
    dgrid: Tensor,
    fine_mask: Tensor,
    region_start: Tensor,
    total_tokens: int,
    scale_factor: int,
    backend: str | None,
) -> Tensor:
    backward = dispatch.resolve_function(
        "unpack_to_grid", "unpack_to_grid_bwd", backend, dgrid.device.type, dgrid.dtype
    )
    result: Tensor = backward(dgrid.contiguous(), fine_mask, region_start, total_tokens, scale_factor)
    return result


def _unpack_to_grid_bwd_fake(
    dgrid: Tensor, fine_mask: Tensor, region_start: Tensor, total_tokens: int, *_: Any
) -> Tensor:
    return dgrid.new_empty((total_tokens, dgrid.shape[1]))


_register("unpack_to_grid", _unpack_to_grid, _unpack_to_grid_fake, (_unpack_to_grid_backward, _unpack_to_grid_setup))
_register("unpack_to_grid_bwd", _unpack_to_grid_bwd, _unpack_to_grid_bwd_fake)
