"""The timm modules that can be wrapped; all others are refused by name."""

from collections.abc import Iterator

from timm.layers import AttentionPoolLatent, DropPath, GluMlp, LayerNorm, Mlp, PatchEmbed, SwiGLU
from timm.layers import norm as timm_norm
from timm.models.vision_transformer import Attention, Block, LayerScale, VisionTransformer
from torch import nn

POOL_TYPES = ("token", "avg", "map")

_MLPS = (Mlp, GluMlp, SwiGLU)
# Norms over the last axis, which can run on [rows, dim] and [rows, num_heads, head_dim].
_NORM_NAMES = ("LayerNormFp32", "RmsNorm", "RmsNormFp32", "SimpleNorm", "SimpleNormFp32")
_NORMS = (nn.LayerNorm, LayerNorm, *(getattr(timm_norm, name) for name in _NORM_NAMES if hasattr(timm_norm, name)))


def supported(vit: object, coarse: int) -> VisionTransformer:
    """Checks that a model can be wrapped.

    Args:
        vit: object to check.
        coarse: width of a region in pixels.

    Returns:
        `vit` itself.

    Raises:
        TypeError: `vit` is not a model, or `coarse` is not an int.
        ValueError: a class, a feature or a size of the model cannot be wrapped; the message names it.
    """
    if not isinstance(vit, nn.Module):
        raise TypeError(f"model: expected a timm VisionTransformer or its name, got {type(vit).__name__}")
    if isinstance(coarse, bool) or not isinstance(coarse, int):
        raise TypeError(f"coarse: expected an int, the width of a region in pixels, got {type(coarse).__name__}")
    if type(vit) is not VisionTransformer or not isinstance(vit, VisionTransformer):
        raise ValueError(f"model: expected a timm VisionTransformer and no subclass, got {type(vit).__name__}")
    for refusal in (*_model_refusals(vit), *_block_refusals(vit), *_size_refusals(vit, coarse)):
        raise ValueError(f"model: cannot wrap a VisionTransformer with {refusal}")
    return vit


def _model_refusals(vit: VisionTransformer) -> Iterator[str]:
    embed = vit.patch_embed
    if type(embed) is not PatchEmbed:
        yield f"patch_embed of class {type(embed).__name__}; expected PatchEmbed"
        return
    if vit.dynamic_img_size or embed.dynamic_img_pad or embed.img_size is None:
        yield "dynamic_img_size or dynamic_img_pad: the size of its images must be fixed"
        return
    if not isinstance(embed.norm, nn.Identity):
        yield f"a norm in patch_embed ({type(embed.norm).__name__})"
    if embed.proj.in_channels != 3:
        yield f"in_chans={embed.proj.in_channels}; expected 3"
    if not isinstance(vit.patch_drop, nn.Identity):
        yield f"patch_drop_rate > 0 ({type(vit.patch_drop).__name__})"
    if vit.global_pool not in POOL_TYPES:
        yield f"global_pool={vit.global_pool!r}; expected one of {', '.join(POOL_TYPES)}"
    if vit.attn_pool is not None and type(vit.attn_pool) is not AttentionPoolLatent:
        yield f"attn_pool of class {type(vit.attn_pool).__name__}"
    elif vit.attn_pool is not None and (vit.attn_pool.latent_len != 1 or vit.attn_pool.pos_embed is not None):
        yield "an attention pooling of several latents or with position encodings"
    for name in ("norm_pre", "norm", "fc_norm"):
        if not isinstance(getattr(vit, name), (nn.Identity, *_NORMS)):
            yield f"{name} of class {type(getattr(vit, name)).__name__}"


def _block_refusals(vit: VisionTransformer) -> Iterator[str]:
    if not len(vit.blocks):
        yield "no blocks (depth 0)"
    for i, block in enumerate(vit.blocks):
        if type(block) is not Block:
            yield f"blocks.{i} of class {type(block).__name__}; expected Block"
            return
        attn = block.attn
        if type(attn) is not Attention:
            yield f"blocks.{i}.attn of class {type(attn).__name__}; expected Attention"
            return
        if attn.attn_drop.p:
            yield f"attn_drop_rate={attn.attn_drop.p}: packed attention has no dropout"
        if attn.head_dim % 8 or not 16 <= attn.head_dim <= 128:
            yield f"head_dim {attn.head_dim}; expected a multiple of 8 between 16 and 128"
        if type(block.mlp) not in _MLPS:
            yield f"blocks.{i}.mlp of class {type(block.mlp).__name__}"
        norms = {"norm1": block.norm1, "norm2": block.norm2, "attn.norm": attn.norm}
        norms |= {"attn.q_norm": attn.q_norm, "attn.k_norm": attn.k_norm}
        for name, norm in norms.items():
            if not isinstance(norm, (nn.Identity, *_NORMS)):
                yield f"blocks.{i}.{name} of class {type(norm).__name__}"
        for name in ("ls1", "ls2", "drop_path1", "drop_path2"):
            if type(getattr(block, name)) not in (nn.Identity, LayerScale, DropPath):
                yield f"blocks.{i}.{name} of class {type(getattr(block, name)).__name__}"


def _size_refusals(vit: VisionTransformer, coarse: int) -> Iterator[str]:
    patch, other = vit.patch_embed.patch_size
    if patch != other:
        yield f"patches of {patch} x {other} pixels; expected square ones"
        return
    if coarse <= patch or coarse % patch:
        yield f"patches of {patch} pixels and coarse={coarse}; expected a multiple of {patch} from {2 * patch}"
        return
    for side in vit.patch_embed.img_size:
        if side % coarse:
            near = sorted({max(side // coarse, 1) * coarse, (side // coarse + 1) * coarse})
            sizes = " or ".join(map(str, near))
            yield f"images of {side} pixels and coarse={coarse}, which does not divide them; use img_size={sizes}"
            return
