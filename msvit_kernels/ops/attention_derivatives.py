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
    full = {
        name: (given[name] if name in given else torch.zeros_like(default.get(name, q))).to(dtype)
        for name in _Values._fields
    }
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
    e, scores, dout_v = _e(at), _scores_tangent(at, tangent, scale), at.dout @ tangent.v.mT
    dweight = _unweighted(at, e * scores + dout_v, scale)
    silent = _silent(at, tangent)
    e, scores, dout_v = (x.masked_fill(silent, 0) for x in (e, scores, dout_v))
    at, tangent = _without(at, silent), _without(tangent, silent)
    p = _p(at, scale)
    r = p * scores + _unweighted(at, tangent.key_weight, scale)
    lse = r.sum(-1)
    ds = e * r + p * dout_v  # gradient of the scores
    return {
        "q": scale * (ds @ at.k + (p * e) @ tangent.k),
        "k": scale * (ds.mT @ at.q + (p * e).mT @ tangent.q),
        "v": r.mT @ at.dout,
        "key_weight": dweight.sum(dim=(0, 1)),
        "out": -lse[..., None] * at.dout,
        "lse": -ds.sum(-1),
        "dout": r @ at.v - lse[..., None] * at.out + p @ tangent.v,
        "dlse": lse,
    }


def _tangents_of_gradients(at: _Values, tangent: _Values, scale: float) -> dict[str, Tensor]:
    """Tangents of dq, dk, dv and dw."""
    e, scores = _e(at), _scores_tangent(at, tangent, scale) - tangent.lse[..., None]
    e_tangent = _e(at._replace(dout=tangent.dout, dlse=tangent.dlse)) + at.dout @ tangent.v.mT
    e_tangent = e_tangent - (at.dout * tangent.out).sum(-1, keepdim=True)
    dweight = _unweighted(at, scores * e + e_tangent, scale)
    silent = _silent(at, tangent)
    e, scores, e_tangent = (x.masked_fill(silent, 0) for x in (e, scores, e_tangent))
    at, tangent = _without(at, silent), _without(tangent, silent)
    p = _p(at, scale)
    p_tangent = p * scores + _unweighted(at, tangent.key_weight, scale)
    ds, ds_tangent = scale * p * e, scale * (p_tangent * e + p * e_tangent)
    return {
        "q": ds_tangent @ at.k + ds @ tangent.k,
        "k": ds_tangent.mT @ at.q + ds.mT @ tangent.q,
        "v": p_tangent.mT @ at.dout + p.mT @ tangent.dout,
        "key_weight": dweight.sum(dim=(0, 1)),
    }


def _p(at: _Values, scale: float) -> Tensor:
    """w exp(s - lse), [num_heads, queries, keys]. The weight enters the exponent, so that the product is finite."""
    active = at.key_weight != 0
    exponent = scale * (at.q @ at.k.mT) - at.lse[..., None]
    p = torch.exp(exponent + at.key_weight.masked_fill(~active, 1).log())
    # At w = 0 the value is 0, and the product has the derivative.
    p = torch.where(active, p, at.key_weight * torch.exp(exponent.masked_fill(~(exponent < 80), -torch.inf)))
    return p.masked_fill(at.lse[..., None] == -torch.inf, 0)


def _unweighted(at: _Values, factor: Tensor, scale: float) -> Tensor:
    """exp(s - lse) * factor, [num_heads, queries, keys]; 0 if the factor is 0.

    exp may overflow where the product does not, so it is multiplied in two halves.
    """
    half = torch.exp((scale * (at.q @ at.k.mT) - at.lse[..., None]) / 2)
    half = half.masked_fill(at.lse[..., None] == -torch.inf, 0)
    return (half * factor * half).masked_fill(factor == 0, 0)


def _silent(at: _Values, tangent: _Values) -> Tensor:
    """bool [keys]: keys that hold NaN or infinity, but whose weight and tangent of the weight are 0."""
    rows = torch.cat([at.k, at.v, tangent.k, tangent.v], dim=-1)
    return (at.key_weight == 0) & (tangent.key_weight == 0) & ~rows.isfinite().all(-1).all(0)


def _without(values: _Values, silent: Tensor) -> _Values:
    """The values with zeros in k and v of silent keys."""
    return values._replace(k=values.k.masked_fill(silent[:, None], 0), v=values.v.masked_fill(silent[:, None], 0))


def _scores_tangent(at: _Values, tangent: _Values, scale: float) -> Tensor:
    return scale * (tangent.q @ at.k.mT + at.q @ tangent.k.mT)


def _e(at: _Values) -> Tensor:
    """dout_i . v_j - dout_i . out_i + dlse_i, the factor of P~ in the gradients."""
    return at.dout @ at.v.mT - (at.dout * at.out).sum(-1, keepdim=True) + at.dlse[..., None]
