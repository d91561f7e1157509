"""`varlen_attention` as torch sees it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from msvit_kernels import dispatch, validation
from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward, VarlenAttentionGradients
from msvit_kernels.ops import attention_derivatives
from msvit_kernels.ops.arguments import gradients_schema, options
from msvit_kernels.ops.derivatives import Derivative
from msvit_kernels.ops.registry import define, none_as_empty


def unrecorded(call: VarlenAttention, backend: str | None, given: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Runs the forward below autograd; the public function calls it directly if torch has nothing to record.

    Args:
        call: validated arguments, except the contents of offsets and weights, which are checked here.
        backend: name of the backend; if None, the first that can run the call.
        given: `options(call)`.

    Returns:
        out and lse, as in `VarlenAttentionBackward`.
    """
    total_q, total_k = call.q.shape[0], call.k.shape[0]
    if validation.checks_contents(call.q):
        _check_offsets(call)
        if call.key_weight is not None:
            validation.check_key_weight(call.key_weight)
    call = _clamped(call, total_q, total_k)
    result: tuple[Tensor, Tensor] = _function("varlen_attention_fwd", call, backend, given)(call)
    return result


def _run(call: VarlenAttention, backend: str | None) -> tuple[Tensor, Tensor]:
    validation.validate_attention_call(call)
    return unrecorded(call, backend, options(call))


def _check_offsets(call: VarlenAttention) -> None:
    total_q, total_k = call.q.shape[0], call.k.shape[0]
    validation.check_offsets("cu_seqlens", call.cu_seqlens_q, total_q, call.max_seqlen_q)
    is_checked = call.cu_seqlens_k is call.cu_seqlens_q and total_k == total_q
    if not is_checked or call.max_seqlen_k < call.max_seqlen_q:
        validation.check_offsets("cu_seqlens_k", call.cu_seqlens_k, total_k, call.max_seqlen_k)


def _clamped(call: VarlenAttention, total_q: int, total_k: int) -> VarlenAttention:
    """The call with bounds of at most the tokens there are, because bounds choose kernels and size grids."""
    if call.max_seqlen_q <= total_q and call.max_seqlen_k <= total_k:
        return call
    return call._replace(max_seqlen_q=min(call.max_seqlen_q, total_q), max_seqlen_k=min(call.max_seqlen_k, total_k))


def _function(name: str, call: VarlenAttention, backend: str | None, given: tuple[str, ...]) -> Callable[..., Any]:
    q, longest = call.q, max(call.max_seqlen_q, call.max_seqlen_k)
    return dispatch.attention_function(name, backend, longest, q.device, q.dtype, q.shape[2], given)


def _fake(call: VarlenAttention) -> tuple[Tensor, Tensor]:
    total_tokens, num_heads, _ = call.q.shape
    lse_dtype = torch.float64 if call.q.dtype == torch.float64 else torch.float32
    return call.q.new_empty(call.q.shape), call.q.new_empty((num_heads, total_tokens), dtype=lse_dtype)


def _save(call: VarlenAttention, output: tuple[Tensor, Tensor]) -> tuple[Any, ...]:
    return call, *output


def _backward(
    saved: tuple[Any, ...], dout: Tensor | None, dlse: Tensor | None, *, needed: set[str], backend: str | None
) -> dict[str, Tensor]:
    call, out, lse = saved
    dout = torch.zeros_like(out) if dout is None else dout
    backward = VarlenAttentionBackward(call, out, lse, dout, dlse, needs_dweight="key_weight" in needed)
    return dict(zip(VarlenAttentionGradients._fields, _differentiate(backward, backend), strict=True))


def _tangent(saved: tuple[Any, ...], given: dict[str, Tensor], backend: str | None) -> tuple[Tensor, Tensor]:
    call, out, lse = saved
    return attention_derivatives.tangents_of_outputs(call, out, lse, given)


def _run_backward(backward: VarlenAttentionBackward, backend: str | None) -> tuple[Tensor, ...]:
    _require_backward(backward)
    call = _clamped(backward.call, backward.call.q.shape[0], backward.call.k.shape[0])
    gradients = _function("varlen_attention_bwd", call, backend, options(call))(backward._replace(call=call))
    return none_as_empty(gradients, like=call.q)


def _require_backward(backward: VarlenAttentionBackward) -> None:
    """Raises unless the backward belongs to a valid forward."""
    call, out, lse, dout, dlse, _ = backward
    validation.validate_attention_call(call)
    for name, x in (("out", out), ("dout", dout)):
        validation.require_tensor(name, x, 3, (call.q.dtype,), call.q.device)
        validation.require_shape(name, x, call.q.shape)
    dtype = torch.float64 if call.q.dtype == torch.float64 else torch.float32
    for name, statistic in (("lse", lse), ("dlse", lse if dlse is None else dlse)):
        validation.require_tensor(name, statistic, 2, (dtype,), call.q.device)
        validation.require_shape(name, statistic, (call.q.shape[1], call.q.shape[0]))
    if validation.checks_contents(call.q):
        _check_offsets(call)


def _fake_backward(backward: VarlenAttentionBackward) -> tuple[Tensor, ...]:
    q, k, v = backward.call.q, backward.call.k, backward.call.v
    dweight = k.new_empty(k.shape[0], dtype=backward.lse.dtype) if backward.needs_dweight else None
    gradients = VarlenAttentionGradients(
        q=q.new_empty(q.shape), k=k.new_empty(k.shape), v=v.new_empty(v.shape), key_weight=dweight
    )
    return none_as_empty(gradients, like=q)


def _save_backward(backward: VarlenAttentionBackward, output: tuple[Tensor, ...]) -> tuple[Any, ...]:
    return (backward,)


def _second_backward(
    saved: tuple[Any, ...], *cotangents: Tensor | None, needed: set[str], backend: str | None
) -> dict[str, Tensor]:
    (backward,) = saved
    names = VarlenAttentionGradients._fields
    given = {name: x for name, x in zip(names, cotangents, strict=True) if x is not None and x.numel()}
    return attention_derivatives.gradients_of_gradients(backward, given)


def _tangent_of_backward(saved: tuple[Any, ...], given: dict[str, Tensor], backend: str | None) -> tuple[Tensor, ...]:
    (backward,) = saved
    q = backward.call.q
    tangents = attention_derivatives.tangents_of_gradients(backward, given)
    weight = tangents["key_weight"] if backward.needs_dweight else q.new_zeros(0)
    return *(tangents[name].to(q.dtype) for name in ("q", "k", "v")), weight


varlen_attention = define(
    "varlen_attention",
    VarlenAttention,
    "(Tensor out, Tensor lse)",
    _run,
    _fake,
    Derivative(_save, _backward, _tangent),
)
_differentiate = define(
    "varlen_attention_bwd",
    VarlenAttentionBackward,
    gradients_schema(VarlenAttentionGradients),
    _run_backward,
    _fake_backward,
    Derivative(_save_backward, _second_backward, _tangent_of_backward),
)
