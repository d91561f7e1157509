"""`varlen_attention`: attention inside each packed sequence, with a weight for every key."""

from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from msvit_kernels import validation
from msvit_kernels.calls import VarlenAttention
from msvit_kernels.ops.arguments import options
from msvit_kernels.ops.varlen_attention import unrecorded
from msvit_kernels.ops.varlen_attention import varlen_attention as operator

_HEAD_DIMS = frozenset(range(16, 129, 8))
_FAST_DTYPES = frozenset(validation.FLOATING_DTYPES)


class _Options(TypedDict, total=False):
    """The optional arguments for type checkers, but for `return_lse`, on which the type of the result depends."""

    cu_seqlens_k: Tensor | None
    max_seqlen_k: int | None
    key_weight: Tensor | None
    softmax_scale: float | None
    backend: str | None


# fmt: off
@overload
def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int,
    *, return_lse: Literal[False] = False, **others: Unpack[_Options],
) -> Tensor: ...
@overload
def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int,
    *, return_lse: Literal[True], **others: Unpack[_Options],
) -> tuple[Tensor, Tensor]: ...
# fmt: on
def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    *,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    key_weight: Tensor | None = None,
    softmax_scale: float | None = None,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Non-causal attention inside each sequence, or from each query sequence to its key sequence.

        out_i = sum_j w_j exp(s_ij) v_j / sum_p w_p exp(s_ip),   s_ij = softmax_scale * q_i . k_j

    which is eq. 10 of the MSViT paper with w the token mask. The gradient of the weight needs no weight above zero:
    dw_j = sum_heads sum_i exp(s_ij - lse_i) (dout_i . v_j - dout_i . out_i), the straight-through gradient of a gate.

    Args:
        q: [total_tokens, num_heads, head_dim], float32, bfloat16 or float16 (float64 on the reference backend), last
            axis contiguous, other strides free; head_dim from 16 to 128, a multiple of 8.
        k: [total_tokens_k, num_heads, head_dim], as q; total_tokens_k = total_tokens without `cu_seqlens_k`.
        v: [total_tokens_k, num_heads, head_dim], as k.
        cu_seqlens: int32 [batch + 1], contiguous, first token of each sequence, then the total. Empty ones are legal.
        max_seqlen: tokens that no sequence exceeds; a bound, not read from the device.
        cu_seqlens_k: int32 [batch + 1], offsets of the keys where they differ from those of the queries.
        max_seqlen_k: tokens that no key sequence exceeds; goes with `cu_seqlens_k`.
        key_weight: float32 [total_tokens_k] (float64 with float64 inputs), finite, >= 0; None for all ones.
        softmax_scale: factor of the scores; head_dim ** -0.5 when None.
        return_lse: return also the logarithm of the softmax denominator.
        backend: "cuda", "triton", "cpu", "reference", or None for the first that supports the inputs; on Hopper GPUs
            for the one that was faster at that `max_seqlen`.

    Returns:
        out [total_tokens, num_heads, head_dim], dtype of q, contiguous; with `return_lse` also lse, float32
        [num_heads, total_tokens], natural logarithm. A query without a key of weight above zero gets 0 and lse -inf.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, strides, devices, sizes or offsets that do not fit; contents of `cu_seqlens` and
            `key_weight` are checked on the CPU, and on a GPU under MSVIT_CHECK=1.
        NotImplementedError: no backend, or not the named one, supports the inputs; the text gives every reason.

    Note:
        Sums are accumulated in fp32. Deterministic in forward and backward: same inputs, same bits. Differentiable in
        q, k, v, key_weight and, through lse, in what is made of it. Cost: 4 * num_heads * head_dim operations for
        each pair of a query and a key of its sequence.
    """
    plain = cu_seqlens_k is None and max_seqlen_k is None and _is_plainly_valid(q, k, v, cu_seqlens, max_seqlen)
    if not plain:
        _validate(q, k, v, cu_seqlens, max_seqlen, cu_seqlens_k, max_seqlen_k)
    if softmax_scale is not None:
        validation.require_finite("softmax_scale", softmax_scale)
    if key_weight is not None:
        validation.validate_key_weight(key_weight, k)
        key_weight = key_weight.contiguous()
    call = VarlenAttention(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens if cu_seqlens_k is None else cu_seqlens_k,
        max_seqlen,
        max_seqlen if max_seqlen_k is None else max_seqlen_k,
        q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale,
        key_weight,
    )
    if plain and not options(call) and _nothing_records(q, k, v):
        out, lse = unrecorded(call, backend, given=())
    else:
        out, lse = operator(call, backend)
    return (out, lse) if return_lse else out


def _validate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_k: Tensor | None,
    max_seqlen_k: int | None,
) -> None:
    validation.validate_attention(q, k, v)
    validation.validate_offsets("cu_seqlens", cu_seqlens, q.device)
    validation.require_int("max_seqlen", max_seqlen, 0)
    if cu_seqlens_k is None:
        if max_seqlen_k is not None:
            raise ValueError("max_seqlen_k: expected None without cu_seqlens_k, got a number")
        if k.shape[0] != q.shape[0]:
            raise ValueError(f"k: expected {q.shape[0]} tokens as in q without cu_seqlens_k, got {k.shape[0]}")
        return
    validation.validate_offsets("cu_seqlens_k", cu_seqlens_k, q.device)
    validation.require_shape("cu_seqlens_k", cu_seqlens_k, cu_seqlens.shape)
    if max_seqlen_k is None:
        raise ValueError("max_seqlen_k: expected an int with cu_seqlens_k, got None")
    validation.require_int("max_seqlen_k", max_seqlen_k, 0)


# The two functions below keep a call in inference at a few microseconds: the dispatcher of torch costs several times
# what a short kernel does. They only ever say "plain"; whatever is not goes the long way, which explains itself.


def _is_plainly_valid(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> bool:
    """True for the commonest valid call: self-attention over plain tensors on one device."""
    if torch.compiler.is_compiling():
        return False
    if not (type(q) is type(k) is type(v) is type(cu_seqlens) is Tensor and type(max_seqlen) is int):
        return False
    shape, device = q.shape, q.device
    return (
        len(shape) == 3
        and k.shape == shape == v.shape
        and shape[1] > 0
        and shape[2] in _HEAD_DIMS
        and q.dtype is k.dtype is v.dtype
        and q.dtype in _FAST_DTYPES
        and cu_seqlens.dtype is torch.int32
        and k.device == device == v.device
        and cu_seqlens.device == device
        and q.stride()[2] == k.stride()[2] == v.stride()[2] == 1
        and cu_seqlens.dim() == 1
        and cu_seqlens.is_contiguous()
        and cu_seqlens.shape[0] > 0
        and max_seqlen >= 0
    )


def _nothing_records(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """True where neither autograd, nor a transform, nor a dispatch mode, nor a tracer wants to see the operator."""
    return (
        not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )
