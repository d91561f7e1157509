"""The mixed-scale ViT: tokenisation, attention and pooling around the modules of a timm `VisionTransformer`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from msvit.models.blocks import MixedScaleBlock
from msvit.models.pooling import pool_tokens
from msvit.models.positions import INTERPOLATIONS, ResampledGrids
from msvit.models.support import supported
from msvit.models.timm_interface import TimmInterface
from msvit.reducers import Reducer, Reducers
from msvit.tokens.decision import Decision
from msvit.tokens.embedding import Embedding, embed_masked, embed_packed, embed_trimmed, position_table
from msvit.tokens.policies import Policy, Threshold
from msvit.tokens.sequences import PackedSequences, Sequences
from msvit_kernels import Packing, Scales

TOKEN_MODES: dict[str, Callable[[Tensor, Decision, Embedding], tuple[Tensor, Sequences]]] = {
    "packed": embed_packed,
    "trimmed": embed_trimmed,
    "masked": embed_masked,
}


class MixedScaleVisionTransformer(TimmInterface):
    """A ViT whose gate gives every image its own number of tokens.

    It holds the modules of a timm model under the same names and shares their parameters with that model. `forward`
    maps images to logits, `forward_features` to packed tokens.

    Args:
        vit: timm `VisionTransformer` to wrap.
        coarse: width of a region in pixels, a multiple of the patch size.
        gate: module that maps images to logits [batch, Hc, Wc]; a positive logit means fine at threshold 0.5.
        policy: policy that chooses the fine regions from the logits; `Threshold(0.5)` by default.
        token_mode: layout of the tokens: "packed", "trimmed" or "masked".
        mean, std: three floats each, per-channel mean and standard deviation of pixels in [0, 1], by which uint8 images
            are normalised. If None, uint8 images are refused. Float images must already be normalised.

    Attributes:
        gate, policy, token_mode, mean, std: as given, and settable.
        reducers: steps between or inside blocks that change the tokens; none by default, see `msvit.reducers`.
        image_size, grid_size, coarse_grid_size: (height, width) in pixels, fine patches and regions.
        patch_size, coarse: width of a patch and of a region in pixels.
        scale_factor: s = coarse / patch_size.
        scales: the candidate tokens of an image, from which tokens are counted.
        dynamic_img_size: whether images may have any size that regions divide, for which position encodings are
            resampled; False by default. It concerns the call; the attributes above keep the size of the parameters.
        pos_embed_interpolation: "bilinear" or "bicubic", by which position encodings are resampled.

    Raises:
        ValueError: a class, feature or size of `vit` cannot be wrapped; the message names it, see `msvit.from_timm`.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        coarse: int,
        gate: nn.Module,
        policy: Policy | None = None,
        token_mode: str = "packed",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        supported(vit, coarse)
        height, width = vit.patch_embed.img_size
        patch_size = vit.patch_embed.patch_size[0]
        scales = Scales((height // coarse, width // coarse), coarse // patch_size, vit.num_prefix_tokens)
        super().__init__((height, width), scales, mean, std)
        self.coarse = coarse
        self.patch_size: int = patch_size
        self._adopt(vit)
        self.gate = gate
        self.policy = policy or Threshold()
        self.token_mode = token_mode
        self.pos_embed_interpolation = "bicubic"
        self._resampled_grids = ResampledGrids()
        # `add_module` refuses the name of a property.
        self._modules["reducers"] = Reducers(len(self.blocks))

    def _adopt(self, vit: VisionTransformer) -> None:
        self.num_classes: int = vit.num_classes
        self.num_heads: int = cast(Any, vit.blocks[0]).attn.num_heads
        self.num_features = self.head_hidden_size = self.embed_dim = int(vit.embed_dim)
        self.num_prefix_tokens: int = vit.num_prefix_tokens
        self.no_embed_class: bool = vit.no_embed_class
        self.global_pool: str = vit.global_pool
        self.pool_include_prefix: bool = vit.pool_include_prefix
        self.pretrained_cfg = getattr(vit, "pretrained_cfg", None) or {}
        self.grad_checkpointing = False
        self.cls_token = vit.cls_token
        self.reg_token = vit.reg_token
        self.pos_embed = vit.pos_embed
        self.patch_embed = vit.patch_embed
        self.pos_drop = vit.pos_drop
        self.norm_pre = vit.norm_pre
        self.blocks = nn.ModuleList(MixedScaleBlock(cast(Block, block)) for block in vit.blocks)
        self.norm = vit.norm
        self.attn_pool = vit.attn_pool
        self.fc_norm = vit.fc_norm
        self.head_drop = vit.head_drop
        self.head = vit.head

    @property
    def token_mode(self) -> str:
        """Layout of the tokens: "packed", "trimmed" or "masked"."""
        return self._token_mode

    @token_mode.setter
    def token_mode(self, value: str) -> None:
        if value not in TOKEN_MODES:
            raise ValueError(f"token_mode: expected one of {', '.join(TOKEN_MODES)}, got {value!r}")
        self._token_mode = value

    @property
    def pos_embed_interpolation(self) -> str:
        """Interpolation of position encodings for images of other sizes: "bilinear" or "bicubic"."""
        return self._pos_embed_interpolation

    @pos_embed_interpolation.setter
    def pos_embed_interpolation(self, value: str) -> None:
        if value not in INTERPOLATIONS:
            raise ValueError(f"pos_embed_interpolation: expected one of {', '.join(INTERPOLATIONS)}, got {value!r}")
        self._pos_embed_interpolation = value

    @property
    def reducers(self) -> Reducers:
        """The reducer of each block that has one: a module, and a mapping from blocks to reducers."""
        return cast(Reducers, self._modules["reducers"])

    @reducers.setter
    def reducers(self, value: Mapping[int, Reducer]) -> None:
        self.reducers.replace(value)

    @reducers.deleter
    def reducers(self) -> None:
        self.reducers.clear()

    def classify(self, images: Tensor, decision: Decision) -> Tensor:
        """Embeds and classifies images for a given decision: the second half of `forward`.

        Args:
            images: uint8 or floating [batch, 3, H, W], as in `forward`.
            decision: result of `decide` for the same images.

        Returns:
            Logits [batch, num_classes], in the dtype of the model.
        """
        return self._head(*self._encode(images, decision))

    def forward_features(
        self, images: Tensor, fine_mask: Tensor | None = None, *, gate_logits: Tensor | None = None
    ) -> tuple[Tensor, Packing]:
        """Computes the tokens after the last block and the final norm, packed in every token mode.

        Args and Raises: as in `forward`.

        Returns:
            Tokens [total_tokens, dim] and their layout, a `MixedScaleLayout` that is the same in every token mode. With
            reducers the layout is a `Packing` of the remaining rows; in the padded modes these are the active rows in
            candidate order: prefix tokens, then coarse, then fine ones.

        Note:
            The key weight is not returned, so `forward_head` pools without it even if a reducer has changed it.
        """
        return self.features(images, self.decide(images, fine_mask, gate_logits=gate_logits))

    def features(self, images: Tensor, decision: Decision) -> tuple[Tensor, Packing]:
        """The second half of `forward_features`: tokens and their layout for a decision of `decide`."""
        tokens, sequences = self._encode(images, decision)
        if isinstance(sequences, PackedSequences):
            return tokens, sequences.packing
        if len(self.reducers):
            return sequences.pack_active(tokens)
        layout = decision.layout()
        return sequences.pack(tokens, layout), layout

    def forward_head(self, tokens: Tensor, layout: Packing, pre_logits: bool = False) -> Tensor:
        """Pools and classifies the tokens that `forward_features` returns.

        Args:
            tokens: [total_tokens, dim].
            layout: packing of the rows; prefix tokens come first in each image.
            pre_logits: whether to leave out the classifier.

        Returns:
            Logits [batch, num_classes]; with `pre_logits`, features [batch, dim].

        Raises:
            TypeError: the layout is no `Packing`, or a field of it has the wrong type.
            ValueError: fields of the layout do not fit together, or the layout has another number of rows.
        """
        if not isinstance(layout, Packing):
            raise TypeError(f"layout: expected a Packing, got {type(layout).__name__}")
        layout.validate()
        if tokens.ndim != 2 or tokens.shape[0] != layout.total_tokens:
            raise ValueError(f"tokens: expected shape [{layout.total_tokens}, dim], got {[*tokens.shape]}")
        return self._head(tokens, PackedSequences(layout), pre_logits)

    def position_table(self, scales: Scales | None = None) -> Tensor:
        """[num_prefix + Nc + Nf, dim], with gradient: the vectors added to the patch projections of the candidates.

        Args:
            scales: candidates of an image, for whose grid the position encodings are resampled; None for those of an
                image of size `image_size`.
        """
        wanted = self.grid_size if scales is None else scales.grid_size
        tokens = [token[0] for token in (self.cls_token, self.reg_token) if token is not None]
        height, width = self.grid_size
        weight = self.patch_embed.proj.weight
        prefix = torch.cat(tokens) if tokens else weight.new_zeros(0, self.embed_dim)
        if self.pos_embed is None:
            grid = weight.new_zeros(height * width, self.embed_dim)
        elif self.no_embed_class:
            grid = self.pos_embed[0]
        else:
            positions, grid = self.pos_embed[0].split([self.num_prefix_tokens, height * width])
            prefix = prefix + positions
        grid = self._resampled_grids(grid.view(height, width, -1), wanted, self.pos_embed_interpolation)
        return position_table(prefix, grid, self.scale_factor)

    def _encode(self, images: Tensor, decision: Decision) -> tuple[Tensor, Sequences]:
        raw = images.dtype == torch.uint8
        embedding = Embedding(
            weight=self.patch_embed.proj.weight,
            bias=self.patch_embed.proj.bias,
            table=self.position_table(decision.scales),
            mean=self.mean if raw else None,
            std=self.std if raw else None,
        )
        x, sequences = TOKEN_MODES[self.token_mode](images, decision, embedding)
        x = self.norm_pre(self.pos_drop(x))
        run = _run_checkpointed if self.grad_checkpointing and torch.is_grad_enabled() else _run
        for index, block in enumerate(self.blocks):
            placed = self.reducers.placed(index)
            if placed is None:
                x = run(block, x, sequences)
            else:
                x, sequences = run(block, x, sequences, placed)
        return self.norm(x), sequences

    def _head(self, x: Tensor, sequences: Sequences, pre_logits: bool = False) -> Tensor:
        pooled = pool_tokens(
            x,
            sequences,
            self.global_pool,
            self.attn_pool,
            self.num_heads,
            self.pool_include_prefix,
        )
        pooled = self.head_drop(self.fc_norm(pooled))
        return pooled if pre_logits else self.head(pooled)


def _run(block: nn.Module, *arguments: Any) -> Any:
    return block(*arguments)


def _run_checkpointed(block: nn.Module, *arguments: Any) -> Any:
    return checkpoint(block, *arguments, use_reentrant=False)
