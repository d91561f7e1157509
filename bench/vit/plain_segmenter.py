"""The original Segmenter (arXiv 2105.05633) from timm's modules: a token for each patch, in encoder and decoder."""

from functools import partial
from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from msvit.models.decoders import NORM_EPS, MaskTransformer
from msvit.tokens.embedding import normalise


class PlainSegmenter(nn.Module):
    """A plain encoder and mask decoder, which share the weights of a mixed-scale `Segmenter`.

    Args:
        vit: encoder from `timm.create_model`.
        decoder: decoder whose weights are shared.
        num_heads: number of heads of the decoder.
    """

    def __init__(self, vit: VisionTransformer, decoder: MaskTransformer, num_heads: int) -> None:
        super().__init__()
        self.vit: Any = vit
        norm_layer: Any = partial(nn.LayerNorm, eps=NORM_EPS)
        with torch.device("meta"):
            blocks = (
                Block(vit.embed_dim, num_heads, qkv_bias=True, norm_layer=norm_layer)
                for _ in range(len(decoder.blocks))
            )
            self.blocks = nn.ModuleList(blocks)
        self.blocks.load_state_dict(decoder.blocks.state_dict(), assign=True)
        self.proj_dec, self.cls_emb = decoder.proj_dec, decoder.cls_emb
        self.proj_patch, self.proj_classes = decoder.proj_patch, decoder.proj_classes
        self.decoder_norm, self.mask_norm = decoder.decoder_norm, decoder.mask_norm

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, num_classes, Hf, Wf] of uint8 images [batch, 3, H, W]."""
        dtype = self.cls_emb.dtype
        wide = torch.promote_types(dtype, torch.float32)
        mean, std = (
            torch.tensor(self.vit.pretrained_cfg[key], device=images.device, dtype=wide).view(3, 1, 1)
            for key in ("mean", "std")
        )
        tokens = self.vit.forward_features(normalise(images, mean, std).to(dtype))
        tokens = tokens[:, self.vit.num_prefix_tokens :]
        height, width = (side // self.vit.patch_embed.patch_size[0] for side in images.shape[2:])
        return self.decode(tokens.mT.unflatten(2, (height, width)))

    def decode(self, grid: Tensor) -> Tensor:
        """Logits [batch, num_classes, Hf, Wf] of the encoder's tokens [batch, dim, Hf, Wf]."""
        num_classes = self.cls_emb.shape[1]
        x = self.proj_dec(grid.flatten(2).mT)
        x = torch.cat([x, self.cls_emb.expand(len(x), -1, -1)], 1)
        for block in self.blocks:
            x = block(x)
        x = self.decoder_norm(x)
        patches, classes = x[:, :-num_classes] @ self.proj_patch, x[:, -num_classes:] @ self.proj_classes
        patches = patches / patches.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        masks: Tensor = self.mask_norm(patches @ classes.mT)
        return masks.mT.unflatten(2, grid.shape[2:])
