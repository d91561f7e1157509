"""`varlen_attention`: attention inside each packed sequence, with one weight per key."""

from typing import Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from msvit_kernels import validation
from msvit_kernels.calls import VarlenAttention
from msvit_kernels.ops.arguments import options
from msvit_kernels.ops.derivatives import forward_mode_is_on
from msvit_kernels.ops.varlen_attention import unrecorded
from msvit_kernels.ops.varlen_attention import varlen_attention as operator

_HEAD_DIMS = frozenset(range(16, 129, 8))
_FAST_DTYPES = frozenset(validation.FLOATING_DTYPES)


class _Options(TypedDict, total=False):
    """The optional arguments for type checkers, except `return_lse`, which determines the type of the result."""

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
        lse_i = log sum_j w_j exp(s_ij)

    Eq. 10 of MSViT (arXiv 2307.02321) with the token mask as w. The gradient of the weight is

        dw_j = sum_heads sum_i exp(s_ij - lse_i) (dout_i . v_j - dout_i . out_i + dlse_i)

    also at w_j = 0: it is the straight-through gradient of a gate's hard decision (docs/operators.md).

    Args:
        q: [total_tokens, num_heads, head_dim], float32, bfloat16 or float16 (float64 on the reference backend only),
            CPU or GPU, last axis contiguous, other strides free; head_dim is a multiple of 8 from 16 to 128.
        k: [total_tokens_k, num_heads, head_dim], dtype and device of q, last axis contiguous; total_tokens_k is
            total_tokens if `cu_seqlens_k` is None.
        v: [total_tokens_k, num_heads, head_dim], as k.
        cu_seqlens: int32 [batch + 1], contiguous, device of q; first token of each sequence, then the total. Sequences
            may be empty.
        max_seqlen: upper bound of the tokens of a sequence; not read from the device.
        cu_seqlens_k: int32 [batch + 1], offsets of the key sequences; if None, `cu_seqlens`.
        max_seqlen_k: upper bound of the tokens of a key sequence; required with `cu_seqlens_k`.
        key_weight: float32 [total_tokens_k] (float64 for float64 inputs), device of q, finite, at least 0; if None, all
            ones.
        softmax_scale: factor of the scores; if None, head_dim ** -0.5.
        return_lse: whether to return lse as well.
        backend: "cuda", "triton", "cpu" or "reference"; if None, the first that supports the inputs (on Hopper GPUs,
            the one measured to be faster at this `max_seqlen`).

    Returns:
        out: [total_tokens, num_heads, head_dim], dtype and device of q, contiguous.
        lse: float32 [num_heads, total_tokens] (float64 for float64 inputs), natural logarithm; only with `return_lse`.

        If all keys of a query have weight 0, or if all its scores are -inf, its out is 0 and its lse is -inf. Other
        results do not depend on rows of k and v of weight 0. If such a row holds NaN or infinity, only the gradient of
        its weight is undefined.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, stride, device, number or offset is invalid. The contents of `cu_seqlens`, `cu_seqlens_k`
            and `key_weight` are checked on the CPU and, on a GPU, only if MSVIT_CHECK=1.
        NotImplementedError: the named backend, or every backend, cannot run the inputs; the message gives each reason.

    Note:
        Sums are accumulated in fp32. Forward and backward are deterministic: same inputs, same bits. `out` and `lse`
        are differentiable in `q`, `k`, `v` and `key_weight`, in reverse and forward mode and under `torch.func`; second
        and forward derivatives are computed in eager PyTorch. Under `torch.autocast`, `q`, `k` and `v` are cast as
        `scaled_dot_product_attention` casts them. Cost of the forward: 4 * num_heads * head_dim operations
        per pair of a query and a key of its sequence.
    """
    if torch._C._is_any_autocast_enabled():
        q, k, v = _autocast(q), _autocast(k), _autocast(v)
    plain = cu_seqlens_k is None and max_seqlen_k is None and _is_plainly_valid(q, k, v, cu_seqlens, max_seqlen)
    if not plain:
        _validate(q, k, v, cu_seqlens, max_seqlen, cu_seqlens_k, max_seqlen_k)
    if softmax_scale is not None:
        validation.require_softmax_scale(softmax_scale, q.dtype)
    validation.require_backend(backend)
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


def _autocast(x: Tensor) -> Tensor:
    """`x` in the dtype that `torch.autocast` gives `scaled_dot_product_attention`: fp64 and integers stay."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dtype == torch.float64:
        return x
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


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


# The two functions below find the calls that may skip torch's dispatcher, which takes several times as long as a short
# kernel. They report no error: a call that they do not accept goes through validation and the dispatcher.


def _is_plainly_valid(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> bool:
    """Whether the call is a valid one of the most common kind: self-attention over plain tensors on one device."""
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
        and 0 <= max_seqlen < 2**63
    )


def _nothing_records(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether neither autograd, nor a transform, nor a dispatch mode, nor a tracer has to see the operator."""
    return (
        not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad))
        and not forward_mode_is_on()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )
