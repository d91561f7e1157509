"""Segmenter's decoders (Strudel et al., arXiv 2105.05633, section 3.2), on packed or on replicated tokens.

A coarse token stands for s * s cells of the fine grid. If it is replicated, its copies stay equal through every step of
a decoder: linear layers and norms work on each token alone, and attention gives equal queries equal results. A key of
weight s * s adds to a softmax what s * s equal keys add. A decoder therefore computes the same masks from packed tokens
whose coarse keys have the weight s * s.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from msvit.models.blocks import MixedScaleBlock
from msvit.tokens.sequences import PackedSequences, softmax_dtype
from msvit_kernels import MixedScaleLayout, Packing, mixed_scale_layout, unpack_to_grid

# That of the original's norms, torch's default; timm's towers have 1e-6.
NORM_EPS = 1e-5


class LinearDecoder(nn.Module):
    """One linear layer on each token.

    Args:
        embed_dim: width of the tokens.
        num_classes: number of classes.
    """

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor, layout: MixedScaleLayout) -> Tensor:
        """Logits [batch, num_classes, Hf, Wf] of packed tokens [total_tokens, dim]."""
        return unpack_to_grid(self.head(tokens), layout)

    def decode_grid(self, grid: Tensor) -> Tensor:
        """Logits [batch, num_classes, Hf, Wf] of replicated tokens [batch, dim, Hf, Wf]."""
        logits: Tensor = self.head(grid.movedim(1, -1))
        return logits.movedim(-1, 1)

    def macs(self, num_tokens: int, num_cells: int) -> int:
        """Multiply-accumulates for one image of `num_tokens` tokens."""
        return num_tokens * self.head.weight.numel()


class MaskTransformer(nn.Module):
    """Transformer over the tokens of an image and one embedding per class, whose products are the logits.

        logits[y, x] = LayerNorm(P[y, x] C^T),    P, C: projected tokens and class embeddings of unit length

    Args:
        embed_dim: width of the tokens.
        num_classes: number of classes.
        num_heads: number of heads of each block.
        depth: number of blocks.
        dropout: rate of dropout after attention and in the MLP, in [0, 1). The original also drops attention
            probabilities, which packed attention cannot.
        drop_path: rate of stochastic depth, in [0, 1).
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_heads: int,
        depth: int = 2,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        norm_layer: Any = partial(nn.LayerNorm, eps=NORM_EPS)
        self.blocks = nn.ModuleList(
            MixedScaleBlock(
                Block(
                    embed_dim,
                    num_heads,
                    qkv_bias=True,
                    proj_drop=dropout,
                    drop_path=drop_path * i / max(depth - 1, 1),
                    norm_layer=norm_layer,
                )
            )
            for i in range(depth)
        )
        self.cls_emb = nn.Parameter(torch.empty(1, num_classes, embed_dim))
        self.proj_dec = nn.Linear(embed_dim, embed_dim)
        self.proj_patch = nn.Parameter(torch.empty(embed_dim, embed_dim))
        self.proj_classes = nn.Parameter(torch.empty(embed_dim, embed_dim))
        self.decoder_norm = norm_layer(embed_dim)
        self.mask_norm = norm_layer(num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)
        for projection in (self.proj_patch, self.proj_classes):
            nn.init.normal_(projection, std=projection.shape[0] ** -0.5)

    def forward(self, tokens: Tensor, layout: MixedScaleLayout) -> Tensor:
        """Decodes packed tokens.

        Args:
            tokens: [total_tokens, dim].
            layout: packing of the tokens.

        Returns:
            Logits [batch, num_classes, Hf, Wf].
        """
        own = self._layout(layout)
        x = self._with_classes(self.proj_dec(tokens), layout, own)
        x = self._run(x, PackedSequences(own, self._key_weight(x, own)))
        patches = unpack_to_grid(F.normalize(x @ self.proj_patch.to(x.dtype), dim=-1), own)
        return self._masks(patches.flatten(2), self._classes(x, own)).unflatten(2, layout.grid_size)

    def decode_grid(self, grid: Tensor) -> Tensor:
        """Decodes replicated tokens, as the MSViT paper does (appendix E.1).

        Args:
            grid: [batch, dim, Hf, Wf].

        Returns:
            Logits [batch, num_classes, Hf, Wf].
        """
        batch, cells = grid.shape[0], grid.shape[2] * grid.shape[3]
        x = self.proj_dec(grid.flatten(2).mT)
        x = torch.cat([self.cls_emb.to(x.dtype).expand(batch, -1, -1), x], dim=1)
        length = self.num_classes + cells
        offsets = torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=grid.device)
        packing = Packing.from_offsets(offsets, length, batch * length, self.num_classes)
        x = self._run(x.flatten(0, 1), PackedSequences(packing)).view(batch, length, grid.shape[1])
        patches = F.normalize(x[:, self.num_classes :] @ self.proj_patch.to(x.dtype), dim=-1).mT
        classes = F.normalize(x[:, : self.num_classes] @ self.proj_classes.to(x.dtype), dim=-1)
        return self._masks(patches, classes).unflatten(2, (grid.shape[2], grid.shape[3]))

    def macs(self, num_tokens: int, num_cells: int) -> int:
        """Multiply-accumulates for one image of `num_tokens` tokens, whose masks have `num_cells` cells."""
        dim = self.proj_patch.shape[0]
        length = num_tokens + self.num_classes
        total = (2 * num_tokens + self.num_classes) * dim**2 + num_cells * self.num_classes * dim
        for block in self.blocks:
            linear = sum(layer.weight.numel() for layer in block.modules() if isinstance(layer, nn.Linear))
            total += length * linear + 2 * length**2 * dim
        return total

    def _layout(self, layout: MixedScaleLayout) -> MixedScaleLayout:
        """The packing of the class embeddings and the patch tokens of each image, without the encoder's prefix."""
        more = self.num_classes - layout.num_prefix
        return mixed_scale_layout(
            layout.fine_mask,
            scale_factor=layout.scale_factor,
            num_prefix=self.num_classes,
            total_tokens=layout.total_tokens + layout.batch * more,
        )

    def _with_classes(self, x: Tensor, layout: MixedScaleLayout, own: MixedScaleLayout) -> Tensor:
        """Replaces the prefix tokens of each image with the class embeddings: rows of `layout` -> rows of `own`."""
        shift = self.num_classes - layout.num_prefix
        rows = torch.arange(own.total_tokens, device=x.device) - (own.batch_index + 1) * shift
        classes = layout.total_tokens + own.token_index
        source = torch.where(own.token_index < self.num_classes, classes, rows)
        return torch.cat([x, self.cls_emb[0].to(x.dtype)]).index_select(0, source)

    def _key_weight(self, x: Tensor, own: MixedScaleLayout) -> Tensor:
        """[total_tokens]: number of cells that each row stands for, 1 for a class embedding."""
        first, last = self.num_classes, self.num_classes + own.scales.num_regions
        is_coarse = (own.token_index >= first) & (own.token_index < last)
        weight = torch.ones(own.total_tokens, dtype=softmax_dtype(x), device=x.device)
        return weight.masked_fill(is_coarse, own.scale_factor**2)

    def _run(self, x: Tensor, sequences: PackedSequences) -> Tensor:
        for block in self.blocks:
            x = block(x, sequences)
        normed: Tensor = self.decoder_norm(x)
        return normed

    def _classes(self, x: Tensor, own: MixedScaleLayout) -> Tensor:
        """[batch, num_classes, dim] of unit length: the projected class embeddings of each image."""
        rows = own.cu_seqlens[:-1, None] + torch.arange(self.num_classes, dtype=torch.int32, device=x.device)
        classes = x.index_select(0, rows.flatten()).view(own.batch, self.num_classes, x.shape[1])
        return F.normalize(classes @ self.proj_classes.to(x.dtype), dim=-1)

    def _masks(self, patches: Tensor, classes: Tensor) -> Tensor:
        """[batch, dim, cells], [batch, num_classes, dim] -> [batch, num_classes, cells]."""
        masks: Tensor = self.mask_norm((classes @ patches).mT)
        return masks.mT


DECODERS = ("mask", "linear")
Decoder = MaskTransformer | LinearDecoder
