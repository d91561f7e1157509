"""A timm transformer block over the rows of `Sequences`: only attention and drop path are replaced."""

import torch
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from msvit.reducers.base import PlacedReducer, apply_reducer
from msvit.tokens.sequences import AttentionTerms, Sequences


class MixedScaleAttention(nn.Module):
    """Self-attention within each image, with the parameters and parameter names of a timm `Attention`."""

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        self.num_heads = attn.num_heads
        self.head_dim = attn.head_dim
        self.attn_dim = attn.num_heads * attn.head_dim
        self.scale = attn.scale
        self.qkv = attn.qkv
        self.q_norm = attn.q_norm
        self.k_norm = attn.k_norm
        self.norm = attn.norm
        self.gate = getattr(attn, "gate", None)
        self.proj = attn.proj
        self.proj_drop = attn.proj_drop

    def forward(
        self, x: Tensor, sequences: Sequences, with_terms: bool = False
    ) -> Tensor | tuple[Tensor, AttentionTerms]:
        """Attends within each image.

        Args:
            x: [rows, dim].
            sequences: layout of the rows.
            with_terms: whether to return the terms of the probabilities too.

        Returns:
            [rows, dim]; with `with_terms`, the pair of that and the terms.
        """
        # [rows, dim] -> three views [rows, num_heads, head_dim] of one projection
        q, k, v = self.qkv(x).view(x.shape[0], 3, self.num_heads, self.head_dim).unbind(1)
        # Under autocast a norm returns fp32.
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        terms = None
        if with_terms:
            out, terms = sequences.attend_with_terms(q, k, v, self.scale)
        else:
            out = sequences.attend(q, k, v, self.scale)
        out = self.norm(out.flatten(1))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        attended: Tensor = self.proj_drop(self.proj(out))
        return attended if terms is None else (attended, terms)


class MixedScaleBlock(nn.Module):
    """Pre-norm transformer block, with the parameters and parameter names of a timm `Block`."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1 = block.norm1
        assert isinstance(block.attn, Attention)
        self.attn = MixedScaleAttention(block.attn)
        self.ls1 = block.ls1
        self.drop_path1 = block.drop_path1
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.ls2 = block.ls2
        self.drop_path2 = block.drop_path2

    def forward(
        self, x: Tensor, sequences: Sequences, placed: PlacedReducer | None = None
    ) -> Tensor | tuple[Tensor, Sequences]:
        """Runs the block, with the reducer at its place.

        Args:
            x: [rows, dim].
            sequences: layout of the rows.
            placed: reducer of the block, which changes the rows before the block or after its attention; None for none.

        Returns:
            [rows, dim]; with a reducer, the pair of the new rows and their layout.
        """
        if placed is not None and placed.place == "before_block":
            x, sequences = apply_reducer(placed, x, sequences, None)
        if placed is not None and placed.place == "after_attention":
            attended, terms = self.attn(self.norm1(x), sequences, with_terms=True)
            x = x + drop_path(self.ls1(attended), self.drop_path1, sequences)
            x, sequences = apply_reducer(placed, x, sequences, terms)
        else:
            x = x + drop_path(self.ls1(self.attn(self.norm1(x), sequences)), self.drop_path1, sequences)
        x = x + drop_path(self.ls2(self.mlp(self.norm2(x))), self.drop_path2, sequences)
        return x if placed is None else (x, sequences)


def drop_path(x: Tensor, module: nn.Module, sequences: Sequences) -> Tensor:
    """Applies stochastic depth with one draw per image, whose rows are all dropped, or all kept and scaled up.

    Args:
        x: [rows, dim].
        module: timm's `DropPath` or `Identity`.
        sequences: layout of the rows.

    Returns:
        [rows, dim].
    """
    rate = getattr(module, "drop_prob", 0.0)
    if not module.training or not rate:
        return x
    keep = 1 - rate
    factors = torch.empty(sequences.batch, dtype=x.dtype, device=x.device).bernoulli_(keep)
    if module.scale_by_keep and keep > 0:
        factors = factors / keep
    return sequences.scale_images(x, factors)
