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
    q, v = call.q, call.v
    out = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=_softmax_dtype(q), device=q.device)
    for rows, all_keys in _sequences(call.cu_seqlens_q, call.cu_seqlens_k):
        keys = _active(all_keys, call.key_weight)
        scores = _weighted_scores(call, rows, keys)
        lse[:, rows] = torch.logsumexp(scores, dim=-1)
        p = _exp(scores, lse[:, rows])
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
    for rows, all_keys in _sequences(call.cu_seqlens_q, call.cu_seqlens_k):
        keys = _active(all_keys, call.key_weight)
        p = _exp(_weighted_scores(call, rows, keys), lse[:, rows])
        ds = (p * _dp(backward, rows, keys, delta) * call.softmax_scale).to(q.dtype)
        dq[rows] = (ds @ _heads_first(k[keys])).transpose(0, 1)
        dk[keys] = (ds.mT @ _heads_first(q[rows])).transpose(0, 1)
        dv[keys] = (p.to(v.dtype).mT @ _heads_first(dout[rows])).transpose(0, 1)
        if dweight is not None:
            # exp in two halves, because it may overflow where the product does not; 0 times infinity counts as 0.
            half = _exp(_scores(call, rows, all_keys) / 2, lse[:, rows] / 2)
            dp = _dp(backward, rows, all_keys, delta)
            dweight[all_keys] = (half * dp * half).masked_fill(dp == 0, 0).sum(dim=(0, 1))
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


def _active(keys: slice, key_weight: Tensor | None) -> slice | Tensor:
    """Rows of the keys whose weight is not 0: the others take part in nothing but the gradient of their weight."""
    if key_weight is None:
        return keys
    return keys.start + (key_weight[keys] != 0).nonzero()[:, 0]


def _scores(call: VarlenAttention, rows: slice, keys: slice | Tensor) -> Tensor:
    """s = softmax_scale * q . k, [num_heads, queries, keys], in the dtype of the softmax."""
    products = _heads_first(call.q[rows]) @ _heads_first(call.k[keys]).mT
    return products.to(_softmax_dtype(call.q)) * call.softmax_scale


def _weighted_scores(call: VarlenAttention, rows: slice, keys: slice | Tensor) -> Tensor:
    """s + log w, as `_scores`."""
    scores = _scores(call, rows, keys)
    return scores if call.key_weight is None else scores + call.key_weight[keys].to(scores.dtype).log()


def _exp(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores - lse), [num_heads, queries, keys]; 0 for queries whose lse is -inf."""
    return torch.exp(scores - lse[..., None]).masked_fill(lse[..., None] == -torch.inf, 0)


def _dp(backward: VarlenAttentionBackward, rows: slice, keys: slice | Tensor, delta: Tensor) -> Tensor:
    """dout . v - delta, [num_heads, queries, keys], in the dtype of the softmax."""
    products = _heads_first(backward.dout[rows]) @ _heads_first(backward.call.v[keys]).mT
    return products.to(delta.dtype) - delta[:, rows, None]
