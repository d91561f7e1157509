"""How the tokens of a batch lie in memory, and what depends on it: attention, pooling, drop path.

In every layout tokens are rows of one [rows, dim] tensor, so that norm, linear, MLP and layer-scale modules run on them
unchanged. `PackedSequences` holds the active tokens of all images end to end; `PaddedSequences` holds k tokens of every
image, of which only the active ones are attended to (eq. 10 of the MSViT paper).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msvit_kernels import MixedScaleLayout, varlen_attention


@dataclass(frozen=True)
class PackedSequences:
    """Active tokens only.

    Attributes:
        layout: of the packed rows.
        key_weight: fp32 [total_tokens], 1 with the gradient of the gate; None where no gate gradient is asked for.
    """

    layout: MixedScaleLayout
    key_weight: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.layout.batch

    def attend(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        """Self-attention inside each image. q, k, v: [rows, num_heads, head_dim]; returns the same shape."""
        layout = self.layout
        return varlen_attention(
            q, k, v, layout.cu_seqlens, layout.max_seqlen, key_weight=self.key_weight, softmax_scale=softmax_scale
        )

    def attend_pool(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, with_prefix: bool) -> Tensor:
        """One query per image. q: [batch, num_heads, head_dim], k, v: [rows, ...]; returns the shape of q."""
        layout = self.layout
        weight = self.key_weight
        if not with_prefix and layout.num_prefix:
            is_patch = (layout.token_index >= layout.num_prefix).to(softmax_dtype(k))
            weight = is_patch if weight is None else is_patch * weight
        return varlen_attention(
            q,
            k,
            v,
            _uniform_offsets(self.batch, 1, q.device),
            1,
            cu_seqlens_k=layout.cu_seqlens,
            max_seqlen_k=layout.max_seqlen,
            key_weight=weight,
            softmax_scale=softmax_scale,
        )

    def mean(self, x: Tensor, num_heads: int, with_prefix: bool) -> Tensor:
        """Mean over the active tokens of each image: [rows, dim] -> [batch, dim].

        A query of zeros weighs all keys alike, so the attention kernel does the segmented mean, deterministically and
        with the gradient of the key weight.
        """
        values = x.view(x.shape[0], num_heads, x.shape[1] // num_heads)
        query = values.new_zeros(self.batch, *values.shape[1:])
        return self.attend_pool(query, values, values, 1.0, with_prefix).flatten(1)

    def first(self, x: Tensor) -> Tensor:
        """First prefix token of each image: [rows, dim] -> [batch, dim]."""
        return x.index_select(0, self.layout.cu_seqlens[:-1])

    def scale_images(self, x: Tensor, factors: Tensor) -> Tensor:
        """Rows of x multiplied by the factor of their image. factors: [batch]."""
        return x * factors.index_select(0, self.layout.batch_index)[:, None]

    def pack(self, x: Tensor, layout: MixedScaleLayout) -> Tensor:
        """Rows in the order of the layout: x itself."""
        return x


@dataclass(frozen=True)
class PaddedSequences:
    """k tokens of every image, active or not.

    Attributes:
        active: bool [batch, k].
        key_weight: fp32 [batch, k], 0 or 1 with the gradient of the gate; None where no gate gradient is asked for,
            and then attention is padded SDPA with a key mask.
        position: int64 [batch, num_candidates], where each candidate lies among the k; anything for those left out.
            None where candidates lie in their own order.
        num_prefix: prefix tokens, which come first.
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

    def attend(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float) -> Tensor:
        """Self-attention inside each image. q, k, v: [batch * k, num_heads, head_dim]; returns the same shape."""
        if self.key_weight is None:
            return self._masked_sdpa(q, k, v, self.active, softmax_scale).flatten(0, 1)
        offsets = _uniform_offsets(self.batch, self.length, q.device)
        weight = self.key_weight.flatten()
        return varlen_attention(q, k, v, offsets, self.length, key_weight=weight, softmax_scale=softmax_scale)

    def attend_pool(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, with_prefix: bool) -> Tensor:
        """One query per image. q: [batch, num_heads, head_dim], k, v: [batch * k, ...]; returns the shape of q."""
        if self.key_weight is None:
            active = self._without_prefix(self.active, with_prefix)
            return self._masked_sdpa(q, k, v, active, softmax_scale).flatten(0, 1)
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
        """Weighted mean over the tokens of each image: [batch * k, dim] -> [batch, dim]."""
        weight = self.active.to(softmax_dtype(x)) if self.key_weight is None else self.key_weight
        weight = self._without_prefix(weight, with_prefix)[..., None]
        return ((self._padded(x) * weight).sum(1) / weight.sum(1)).to(x.dtype)

    def first(self, x: Tensor) -> Tensor:
        """First prefix token of each image: [batch * k, dim] -> [batch, dim]."""
        return self._padded(x)[:, 0]

    def scale_images(self, x: Tensor, factors: Tensor) -> Tensor:
        """Rows of x multiplied by the factor of their image. factors: [batch]."""
        return (self._padded(x) * factors[:, None, None]).flatten(0, 1)

    def pack(self, x: Tensor, layout: MixedScaleLayout) -> Tensor:
        """Active rows in the order of the layout: [batch * k, dim] -> [total_tokens, dim]."""
        position = layout.token_index.long()
        if self.position is not None:
            position = self.position[layout.batch_index, position]
        return x.index_select(0, layout.batch_index * self.length + position)

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
    """Dtype of the key weights that go with tokens x: fp32, for fp64 tokens fp64."""
    return torch.promote_types(x.dtype, torch.float32)


def _uniform_offsets(batch: int, length: int, device: torch.device) -> Tensor:
    return torch.arange(batch + 1, dtype=torch.int32, device=device) * length
