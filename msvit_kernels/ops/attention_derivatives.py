"""Forward-mode and second derivatives of `varlen_attention`, in eager PyTorch, one sequence after the other.

For tangents q', k', v', w' of the arguments, with s = softmax_scale * q k^T and P~ = exp(s - lse):

    s' = softmax_scale * (q' k^T + q k'^T),   R_ij = P~_ij (w_j s'_ij + w'_j),   lse'_i = sum_j R_ij
    out'_i = sum_j R_ij v_j - lse'_i out_i + sum_j w_j P~_ij v'_j

The gradients dq, dk, dv and dw are differentiated as functions of q, k, v, w, out, lse, dout and dlse; the parts
through out and lse then pass through the first derivative. All formulas hold at w = 0, as the first derivative does.
They are computed in fp32 (fp64 for fp64 inputs), take the memory of the scores of one sequence, and read the offsets on
the host.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward


class _Values(NamedTuple):
    """Values or tangents of the tensors that the gradients depend on, heads first: [num_heads, tokens, head_dim]."""

    q: Tensor
    k: Tensor
    v: Tensor
    key_weight: Tensor  # [keys]
    out: Tensor
    dout: Tensor
    lse: Tensor  # [num_heads, queries]
    dlse: Tensor


_OF_KEYS = ("k", "v", "key_weight")
_Formulas = Callable[[_Values, _Values, float], dict[str, Tensor]]


def tangents_of_outputs(
    call: VarlenAttention, out: Tensor, lse: Tensor, given: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Tangents of out and lse for tangents of the arguments by name; a missing one is 0."""
    values = _values(call, {**_tensors(call), "out": out, "lse": lse})
    found = _by_sequence(_gradients_of_gradients, call, values, _values(call, given))
    return found["dout"].to(out.dtype), found["dlse"]


def gradients_of_gradients(backward: VarlenAttentionBackward, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of sum(dq * q' + dk * k' + dv * v' + dw * w') by name of tensor; `given` holds q', k', v' and w'."""
    call = backward.call
    return _by_sequence(_gradients_of_gradients, call, _values(call, _tensors(backward)), _values(call, given))


def tangents_of_gradients(backward: VarlenAttentionBackward, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tangents of dq, dk, dv and dw by name of argument, for tangents by name of tensor; a missing one is 0."""
    call = backward.call
    return _by_sequence(_tangents_of_gradients, call, _values(call, _tensors(backward)), _values(call, given))


def _tensors(call: VarlenAttention | VarlenAttentionBackward) -> dict[str, Tensor]:
    """The tensors of a call by name, with weights of 1 if it has none."""
    if isinstance(call, VarlenAttentionBackward):
        more = {"out": call.out, "lse": call.lse, "dout": call.dout}
        return {**_tensors(call.call), **more, **({} if call.dlse is None else {"dlse": call.dlse})}
    weight = call.k.new_ones(call.k.shape[0]) if call.key_weight is None else call.key_weight
    return {"q": call.q, "k": call.k, "v": call.v, "key_weight": weight}


def _values(call: VarlenAttention, given: dict[str, Tensor]) -> _Values:
    """The given tensors, and zeros for the others."""
    q, k = call.q, call.k
    dtype = torch.promote_types(q.dtype, torch.float32)
    statistics = q.new_zeros((q.shape[1], q.shape[0]))
    default = {"k": k, "v": k, "key_weight": k[:, 0, 0], "lse": statistics, "dlse": statistics}
    full = {name: given.get(name, torch.zeros_like(default.get(name, q))).to(dtype) for name in _Values._fields}
    return _Values(**{name: x.transpose(0, 1) if x.dim() == 3 else x for name, x in full.items()})


def _by_sequence(formulas: _Formulas, call: VarlenAttention, values: _Values, tangents: _Values) -> dict[str, Tensor]:
    """Applies the formulas to each sequence and packs the results, by name, as the arguments are packed."""
    offsets_q, offsets_k = call.cu_seqlens_q.tolist(), call.cu_seqlens_k.tolist()
    parts = []
    for i in range(-1, len(offsets_q) - 1):  # -1: no rows, so that there is a part even without sequences
        rows = slice(offsets_q[max(i, 0)], offsets_q[i + 1])
        keys = slice(offsets_k[max(i, 0)], offsets_k[i + 1])
        with torch.autocast(call.q.device.type, enabled=False):
            parts.append(formulas(_cut(values, rows, keys), _cut(tangents, rows, keys), call.softmax_scale))
    packed = {}
    for name, first in parts[0].items():
        x = torch.cat([part[name] for part in parts], dim=0 if first.dim() == 1 else 1)
        packed[name] = x.transpose(0, 1) if x.dim() == 3 else x
    return packed


def _cut(values: _Values, rows: slice, keys: slice) -> _Values:
    parts = {}
    for name, x in values._asdict().items():
        part = keys if name in _OF_KEYS else rows
        parts[name] = x[part] if x.dim() == 1 else x[:, part]
    return _Values(**parts)


def _gradients_of_gradients(at: _Values, tangent: _Values, scale: float) -> dict[str, Tensor]:
    """Gradients of sum(dq * q' + dk * k' + dv * v' + dw * w'); of dout and dlse: the tangents out' and lse'."""
    w, p, e = at.key_weight, _unweighted_p(at, scale), _e(at)
    scores, dout_v = _scores_tangent(at, tangent, scale), at.dout @ tangent.v.mT
    wp = w * p
    r = p * (w * scores + tangent.key_weight)
    lse = r.sum(-1)
    ds = e * r + wp * dout_v  # gradient of the scores
    return {
        "q": scale * (ds @ at.k + (wp * e) @ tangent.k),
        "k": scale * (ds.mT @ at.q + (wp * e).mT @ tangent.q),
        "v": r.mT @ at.dout,
        "key_weight": (p * (e * scores + dout_v)).sum(dim=(0, 1)),
        "out": -lse[..., None] * at.dout,
        "lse": -ds.sum(-1),
        "dout": r @ at.v - lse[..., None] * at.out + wp @ tangent.v,
        "dlse": lse,
    }


def _tangents_of_gradients(at: _Values, tangent: _Values, scale: float) -> dict[str, Tensor]:
    """Tangents of dq, dk, dv and dw."""
    w, p, e = at.key_weight, _unweighted_p(at, scale), _e(at)
    p_tangent = p * (_scores_tangent(at, tangent, scale) - tangent.lse[..., None])
    e_tangent = _e(at._replace(dout=tangent.dout, dlse=tangent.dlse)) + at.dout @ tangent.v.mT
    e_tangent -= (at.dout * tangent.out).sum(-1, keepdim=True)
    wp_tangent = tangent.key_weight * p + w * p_tangent
    ds, ds_tangent = scale * w * p * e, scale * (wp_tangent * e + w * p * e_tangent)
    return {
        "q": ds_tangent @ at.k + ds @ tangent.k,
        "k": ds_tangent.mT @ at.q + ds.mT @ tangent.q,
        "v": wp_tangent.mT @ at.dout + (w * p).mT @ tangent.dout,
        "key_weight": (p_tangent * e + p * e_tangent).sum(dim=(0, 1)),
    }


def _unweighted_p(at: _Values, scale: float) -> Tensor:
    """P~ = exp(s - lse), [num_heads, queries, keys]; 0 for queries whose lse is -inf."""
    p = torch.exp(scale * (at.q @ at.k.mT) - at.lse[..., None])
    return p.masked_fill(at.lse[..., None] == -torch.inf, 0)


def _scores_tangent(at: _Values, tangent: _Values, scale: float) -> Tensor:
    return scale * (tangent.q @ at.k.mT + at.q @ tangent.k.mT)


def _e(at: _Values) -> Tensor:
    """dout_i . v_j - dout_i . out_i + dlse_i, the factor of P~ in the gradients."""
    return at.dout @ at.v.mT - (at.dout * at.out).sum(-1, keepdim=True) + at.dlse[..., None]
