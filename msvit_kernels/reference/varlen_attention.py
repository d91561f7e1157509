"""Weighted attention inside each sequence, one sequence after the other (eq. 10 of MSViT, arXiv 2307.02321).

    out_i = sum_j w_j exp(s_ij) v_j / sum_p w_p exp(s_ip),   s_ij = softmax_scale * q_i . k_j

Products run in the dtype of the inputs, the softmax in fp32 (fp64 for fp64 inputs), as in plain eager code.
docs/operators.md derives the gradients.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward, VarlenAttentionGradients

OPTIONS = frozenset({"key_weight"})


def varlen_attention_fwd(call: VarlenAttention) -> tuple[Tensor, Tensor]:
    """Computes the attention of each sequence.

    Returns:
        out: [total_q, num_heads, head_dim], dtype of q, contiguous; 0 for a query without a key of weight above 0.
        lse: float32 [num_heads, total_q] (float64 for float64 inputs), natural logarithm; -inf for such a query.
    """
    q, k, v = call.q, call.k, call.v
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=_softmax_dtype(q), device=q.device)
    for rows, keys in _sequences(call.cu_seqlens_q, call.cu_seqlens_k):
        scores = _scores(q[rows], k[keys], call.softmax_scale)
        weight = _weight(call.key_weight, keys, scores)
        lse[:, rows] = torch.logsumexp(scores + weight.log(), dim=-1)
        p = weight * _unweighted_p(scores, lse[:, rows]).masked_fill(weight == 0, 0)
        out[rows] = (p.to(v.dtype) @ _heads_first(v[keys])).transpose(0, 1)
    return out, lse


def varlen_attention_bwd(backward: VarlenAttentionBackward) -> VarlenAttentionGradients:
    """Computes the gradients of q, k and v, and that of key_weight, [total_k] in the dtype of lse, if it is wanted."""
    call, out, lse, dout, dlse, needs_dweight = backward
    q, k, v = call.q, call.k, call.v
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    dweight = torch.zeros(k.shape[0], dtype=lse.dtype, device=k.device) if needs_dweight else None
    delta = (dout.to(lse.dtype) * out.to(lse.dtype)).sum(-1).T  # [num_heads, total_tokens]
    if dlse is not None:
        delta = delta - dlse
    for rows, keys in _sequences(call.cu_seqlens_q, call.cu_seqlens_k):
        scores = _scores(q[rows], k[keys], call.softmax_scale)
        weight = _weight(call.key_weight, keys, scores)
        unweighted = _unweighted_p(scores, lse[:, rows])
        p = weight * unweighted.masked_fill(weight == 0, 0)
        dp = (_heads_first(dout[rows]) @ _heads_first(v[keys]).mT).to(lse.dtype) - delta[:, rows, None]
        ds = (p * dp * call.softmax_scale).to(q.dtype)
        dq[rows] = (ds @ _heads_first(k[keys])).transpose(0, 1)
        dk[keys] = (ds.mT @ _heads_first(q[rows])).transpose(0, 1)
        dv[keys] = (p.to(v.dtype).mT @ _heads_first(dout[rows])).transpose(0, 1)
        if dweight is not None:
            dweight[keys] = (unweighted * dp).sum(dim=(0, 1))
    return VarlenAttentionGradients(dq, dk, dv, dweight)


def unsupported_reason(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Always None: the reference takes any device, floating-point dtype and head_dim."""
    return None


def _sequences(cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> Iterator[tuple[slice, slice]]:
    """(rows of the queries, rows of the keys) of each sequence."""
    offsets_q, offsets_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    for i in range(len(offsets_q) - 1):
        yield slice(offsets_q[i], offsets_q[i + 1]), slice(offsets_k[i], offsets_k[i + 1])


def _softmax_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1)  # [tokens, num_heads, head_dim] -> [num_heads, tokens, head_dim]


def _scores(q: Tensor, k: Tensor, softmax_scale: float) -> Tensor:
    """s = softmax_scale * q . k, [num_heads, queries, keys], in the dtype of the softmax."""
    return (_heads_first(q) @ _heads_first(k).mT).to(_softmax_dtype(q)) * softmax_scale


def _weight(key_weight: Tensor | None, keys: slice, scores: Tensor) -> Tensor:
    """Weights [keys] of the keys of one sequence, in the dtype of the scores."""
    if key_weight is None:
        return scores.new_ones(scores.shape[-1])
    return key_weight[keys].to(scores.dtype)


def _unweighted_p(scores: Tensor, lse: Tensor) -> Tensor:
    """P~ = exp(s - lse), [num_heads, queries, keys]; 0 for queries whose lse is -inf."""
    return torch.exp(scores - lse[..., None]).masked_fill(lse[..., None] == -torch.inf, 0)
