"""Memory layouts of the tokens of a batch, and the steps that depend on them: attention, pooling, drop path, `keep`.

In every layout tokens are rows of one [rows, dim] tensor, so that norm, linear, MLP and layer-scale modules run on them
unchanged. `PackedSequences` holds the active tokens of all images end to end; `PaddedSequences` holds k tokens of every
image, of which only the active ones are attended to (eq. 10 of the MSViT paper).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from msvit_kernels import MixedScaleLayout, Packing, validation, varlen_attention


class AttentionTerms(NamedTuple):
    """The terms of the probabilities of self-attention: p_ij = w_j exp(softmax_scale q_i . k_j - lse_i).

    w is the key weight of the sequences, or 1 if they have none.

    Attributes:
        q, k: [rows, num_heads, head_dim].
        lse: fp32 [num_heads, rows].
        softmax_scale: factor of the scores.
    """

    q: Tensor
    k: Tensor
    lse: Tensor
    softmax_scale: float


@dataclass(frozen=True)
class PackedSequences:
    """The active tokens of all images, end to end.

    Attributes:
        packing: packing of the rows; a `MixedScaleLayout` until a reducer changes them.
        key_weight: fp32 [total_tokens], ones with the gradient of the gate; None if the gate needs no gradient.
    """

    packing: Packing
    key_weight: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.packing.batch

    @property
    def num_rows(self) -> int:
        return self.packing.total_tokens

    @property
    def num_prefix(self) -> int:
        """Prefix tokens of each image, which come first."""
        return self.packing.num_prefix

    @property
    def batch_index(self) -> Tensor:
        """int32 [rows]: the image of each row."""
        return self.packing.batch_index

    def is_prefix(self) -> Tensor:
        """bool [rows], True for prefix tokens."""
        return self.packing.is_prefix()

    def is_active(self) -> Tensor:
        """bool [rows], True for rows that are attended to, here all rows."""
        return torch.ones_like(self.packing.batch_index, dtype=torch.bool)

    def keep(self, tokens: Tensor, mask: Tensor, total_tokens: int | None = None) -> tuple[Tensor, "PackedSequences"]:
        """Removes the rows outside a mask.

        Args:
            tokens: [rows, dim].
            mask: bool [rows], True for rows that stay; prefix tokens always stay.
            total_tokens: number of active rows that stay, prefix tokens included. If None, one integer is read from
                the device.

        Returns:
            The tokens that stay, in order, and their sequences.

        Raises:
            TypeError, ValueError: `tokens` or `mask` has the wrong shape, dtype or device; `total_tokens` is not an int
                >= 0, or differs from the number of rows that stay (checked on the CPU, and on a GPU if MSVIT_CHECK=1).
        """
        _check_keep(tokens, mask, total_tokens, self.packing.total_tokens, self.packing.cu_seqlens.device)
        rows, packing = self.packing.keep(mask, total_tokens)
        weight = None if self.key_weight is None else self.key_weight.index_select(0, rows)
        return tokens.index_select(0, rows), PackedSequences(packing, weight)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        """Self-attention within each image. q, k, v: [rows, num_heads, head_dim]; returns the same shape."""
        return self.attend_with_terms(q, k, v, softmax_scale)[0]

    def attend_with_terms(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> tuple[Tensor, AttentionTerms]:
        """Like `attend`, but also returns the terms of the probabilities."""
        packing = self.packing
        out, lse = varlen_attention(
            q,
            k,
            v,
            packing.cu_seqlens,
            packing.max_seqlen,
            key_weight=self.key_weight,
            softmax_scale=softmax_scale,
            return_lse=True,
        )
        return out, AttentionTerms(q, k, lse, softmax_scale)

    def attend_pool(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, with_prefix: bool) -> Tensor:
        """Attention with one query per image. q: [batch, num_heads, head_dim], k, v: [rows, ...]; returns q's shape."""
        packing = self.packing
        weight = self.key_weight
        if not with_prefix and packing.num_prefix:
            weight = k.new_ones(len(k), dtype=softmax_dtype(k)) if weight is None else weight
            weight = weight.masked_fill(packing.is_prefix(), 0.0)
        return varlen_attention(
            q,
            k,
            v,
            _uniform_offsets(self.batch, 1, q.device),
            1,
            cu_seqlens_k=packing.cu_seqlens,
            max_seqlen_k=packing.max_seqlen,
            key_weight=weight,
            softmax_scale=softmax_scale,
        )

    def mean(self, x: Tensor, num_heads: int, with_prefix: bool) -> Tensor:
        """Mean over the active tokens of each image, 0 if there are none: [rows, dim] -> [batch, dim].

        A query of zeros weighs all keys equally, so the attention kernel computes the mean of each segment,
        deterministically and with the gradient of the key weight.
        """
        values = x.view(x.shape[0], num_heads, x.shape[1] // num_heads)
        query = values.new_zeros(self.batch, *values.shape[1:])
        return self.attend_pool(query, values, values, 1.0, with_prefix).flatten(1)

    def first(self, x: Tensor) -> Tensor:
        """First prefix token of each image: [rows, dim] -> [batch, dim]."""
        return x.index_select(0, self.packing.cu_seqlens[:-1])

    def scale_images(self, x: Tensor, factors: Tensor) -> Tensor:
        """Multiplies each row of x by the factor of its image. factors: [batch]."""
        return x * factors.index_select(0, self.packing.batch_index)[:, None]


@dataclass(frozen=True)
class PaddedSequences:
    """k tokens of every image, active or not.

    Attributes:
        active: bool [batch, k].
        key_weight: fp32 [batch, k], 0 or 1 with the gradient of the gate. None if the gate needs no gradient;
            attention is then padded SDPA with a key mask.
        position: int64 [batch, num_candidates], index of each candidate among the k tokens, arbitrary for candidates
            that are left out. None if the tokens are in candidate order.
        num_prefix: number of prefix tokens of each image, which come first.
    """

    active: Tensor
    key_weight: Tensor | None
    position: Tensor | None
    num_prefix: int

    @property
    def batch(self) -> int:
        return self.active.shape[0]

    @property
    def length(self) -> int:
        return self.active.shape[1]

    @property
    def num_rows(self) -> int:
        return self.batch * self.length

    @property
    def batch_index(self) -> Tensor:
        """int32 [rows]: the image of each row."""
        return self._all_rows().batch_index

    def is_prefix(self) -> Tensor:
        """bool [rows], True for prefix tokens."""
        return self._all_rows().is_prefix()

    def is_active(self) -> Tensor:
        """bool [rows], True for rows that are attended to."""
        return self.active.flatten()

    def keep(self, tokens: Tensor, mask: Tensor, total_tokens: int | None = None) -> tuple[Tensor, "PaddedSequences"]:
        """Like `PackedSequences.keep`, but removed rows stay in place, inactive and with key weight 0."""
        _check_keep(tokens, mask, total_tokens, self.num_rows, self.active.device)
        kept = (mask | self.is_prefix()).view(self.active.shape)
        active = self.active & kept
        if total_tokens is not None and not torch.compiler.is_compiling() and validation.checks_contents(mask):
            _check_total(active, total_tokens)
        weight = None if self.key_weight is None else self.key_weight.masked_fill(~kept, 0.0)
        return tokens, replace(self, active=active, key_weight=weight)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        """Self-attention within each image. q, k, v: [batch * k, num_heads, head_dim]; returns the same shape."""
        if self.key_weight is None:
            return self._masked_sdpa(q, k, v, self._keys(), softmax_scale).flatten(0, 1)
        return self.attend_with_terms(q, k, v, softmax_scale)[0]

    def attend_with_terms(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> tuple[Tensor, AttentionTerms]:
        """Like `attend`, but also returns the terms; uses `varlen_attention`, since SDPA does not return lse."""
        offsets = _uniform_offsets(self.batch, self.length, q.device)
        weight = self._weight(softmax_dtype(q)).flatten()
        out, lse = varlen_attention(
            q, k, v, offsets, self.length, key_weight=weight, softmax_scale=softmax_scale, return_lse=True
        )
        return out, AttentionTerms(q, k, lse, softmax_scale)

    def attend_pool(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, with_prefix: bool) -> Tensor:
        """Attention with one query per image. q: [batch, num_heads, head_dim], k, v: [rows, ...]; returns q's shape."""
        if self.key_weight is None:
            active = self._without_prefix(self.active, with_prefix)
            out = self._masked_sdpa(q, k, v, _with_some_key(active), softmax_scale).flatten(0, 1)
            return out.masked_fill(~active.any(1)[:, None, None], 0.0)
        return varlen_attention(
            q,
            k,
            v,
            _uniform_offsets(self.batch, 1, q.device),
            1,
            cu_seqlens_k=_uniform_offsets(self.batch, self.length, q.device),
            max_seqlen_k=self.length,
            key_weight=self._without_prefix(self.key_weight, with_prefix).flatten(),
            softmax_scale=softmax_scale,
        )

    def mean(self, x: Tensor, num_heads: int, with_prefix: bool) -> Tensor:
        """Weighted mean over the tokens of each image, 0 if there are none: [batch * k, dim] -> [batch, dim]."""
        weight = self._without_prefix(self._weight(softmax_dtype(x)), with_prefix)[..., None]
        total = weight.sum(1)
        empty = total == 0
        mean = (self._padded(x) * weight).sum(1) / total.masked_fill(empty, 1.0)
        return mean.masked_fill(empty, 0.0).to(x.dtype)

    def first(self, x: Tensor) -> Tensor:
        """First prefix token of each image: [batch * k, dim] -> [batch, dim]."""
        return self._padded(x)[:, 0]

    def scale_images(self, x: Tensor, factors: Tensor) -> Tensor:
        """Multiplies each row of x by the factor of its image. factors: [batch]."""
        return (self._padded(x) * factors[:, None, None]).flatten(0, 1)

    def pack(self, x: Tensor, layout: MixedScaleLayout) -> Tensor:
        """Active rows in the order of the layout: [batch * k, dim] -> [total_tokens, dim]."""
        position = layout.token_index.long()
        if self.position is not None:
            position = self.position[layout.batch_index, position]
        return x.index_select(0, layout.batch_index * self.length + position)

    def pack_active(self, x: Tensor) -> tuple[Tensor, Packing]:
        """Active rows in their present order, and their packing. Reads one integer from the device."""
        rows, packing = self._all_rows().keep(self.active.flatten())
        return x.index_select(0, rows), packing

    def _keys(self) -> Tensor:
        """bool [batch, k]: the keys of attention, the same in every block. Prefix tokens are always active."""
        if self.num_prefix:
            return self.active
        if torch.compiler.is_compiling():  # the compiler merges equal masks itself
            return _with_some_key(self.active)
        keys: Tensor | None = self.__dict__.get("_keys_of_blocks")
        if keys is None:
            keys = self.__dict__["_keys_of_blocks"] = _with_some_key(self.active)
        return keys

    def _all_rows(self) -> Packing:
        """The packing of all rows, active or not."""
        offsets = _uniform_offsets(self.batch, self.length, self.active.device)
        return Packing.from_offsets(offsets, self.length, self.batch * self.length, self.num_prefix)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        """[batch, k]: the key weight, or `active` as 0 or 1 if there is none."""
        return self.active.to(dtype) if self.key_weight is None else self.key_weight

    def _padded(self, x: Tensor) -> Tensor:
        return x.view(self.batch, self.length, x.shape[1])

    def _masked_sdpa(self, q: Tensor, k: Tensor, v: Tensor, active: Tensor, softmax_scale: float) -> Tensor:
        # [batch * n, num_heads, head_dim] -> [batch, num_heads, n, head_dim]; n is 1 for the queries of a pooling
        q = q.unflatten(0, (self.batch, self.length if len(q) == len(k) else 1)).transpose(1, 2)
        k, v = (x.unflatten(0, (self.batch, self.length)).transpose(1, 2) for x in (k, v))
        mask = active[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=softmax_scale)
        return out.transpose(1, 2)

    def _without_prefix(self, weight: Tensor, with_prefix: bool) -> Tensor:
        if with_prefix or not self.num_prefix:
            return weight
        return F.pad(weight[:, self.num_prefix :], (self.num_prefix, 0))


Sequences = PackedSequences | PaddedSequences


def softmax_dtype(x: Tensor) -> torch.dtype:
    """Dtype of the key weights for tokens x: fp64 for fp64 tokens, else fp32."""
    return torch.promote_types(x.dtype, torch.float32)


def _check_keep(tokens: Tensor, mask: Tensor, total_tokens: int | None, num_rows: int, device: torch.device) -> None:
    """Raises TypeError or ValueError if arguments of `keep` are invalid; reads nothing from the device."""
    validation.require_tensor("mask", mask, 1, (torch.bool,), device)
    validation.require_shape("mask", mask, (num_rows,))
    validation.require_tensor("tokens", tokens, 2, validation.FLOATING_DTYPES, device)
    validation.require_shape("tokens", tokens, (num_rows, tokens.shape[1]))
    if total_tokens is not None:
        validation.require_int("total_tokens", total_tokens, 0)


def _check_total(active: Tensor, total_tokens: int) -> None:
    """Raises ValueError unless `total_tokens` rows are active, as packed mode does; no shape here depends on it."""
    if (found := int(active.sum())) != total_tokens:
        raise ValueError(f"total_tokens: expected the number of active rows {found}, got {total_tokens}")


def _with_some_key(active: Tensor) -> Tensor:
    """`active`, with all keys of an image that has no active one; without a key SDPA need not be finite."""
    return active | ~active.any(1, keepdim=True)


def _uniform_offsets(batch: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=device)
