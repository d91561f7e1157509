"""Makes models by name (`create_model`) and from timm models (`from_timm`)."""

import inspect
import os
import re
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from msvit.checkpoint import load_checkpoint
from msvit.gates import make_gate
from msvit.models.decoders import DECODERS, NORM_EPS
from msvit.models.segmenter import Segmenter
from msvit.models.support import supported
from msvit.models.timm_config import default_cfg, given_cfg, given_img_size
from msvit.models.vit import MixedScaleVisionTransformer
from msvit.tokens.policies import Policy

# Width, depth and heads of the ViT paper's models.
SIZES: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
# Patch and region width in pixels.
SCALES = {"16_32": (16, 32), "8_16": (8, 16), "32_64": (32, 64)}

_NAME = re.compile(rf"msvit_({'|'.join(SIZES)})_patch({'|'.join(SCALES)})_([1-9]\d*)")

_SEGMENTER_NAME = re.compile(rf"msvit_seg_({'|'.join(SIZES)})_({'|'.join(DECODERS)})_(patch.*)")


def create_model(
    name: str, *, pretrained: bool = False, img_size: int | tuple[int, int] | None = None, **options: Any
) -> Any:
    """Makes a mixed-scale ViT or a Segmenter by name.

    Args:
        name: "msvit_{tiny,small,base,large}_patch{16_32,8_16,32_64}_{image size in pixels}" for a ViT,
            "msvit_seg_{tiny,small,base,large}_{mask,linear}_patch..." for a Segmenter.
        pretrained: whether to load timm's weights for the ViT of that size and patch size, which include no gate.
        img_size: height and width in pixels, multiples of the region's width; by default, the `input_size` of
            `pretrained_cfg_overlay` or `pretrained_cfg`, or else the size in the name.
        options: `gate`, `policy`, `token_mode`, `mean`, `std`, `checkpoint_path` and `load_head` as in `from_timm`;
            `pretrained_cfg`, `pretrained_cfg_overlay` and `cache_dir` as in `timm.create_model`, for the plain ViT; the
            others are arguments of timm's `VisionTransformer`, such as `num_classes`, `drop_path_rate` and
            `global_pool`. For a Segmenter, `num_classes` (150 by default), `decode`, `decoder_depth` and `dropout` are
            those of `msvit.Segmenter`, `load_head` concerns its decoder, and `norm_eps` is the epsilon of the encoder's
            layer norms (1e-5, that of the original).

    Returns:
        A `MixedScaleVisionTransformer` or a `Segmenter`, on the CPU, in fp32 and in training mode.

    Raises:
        ValueError: the name is unknown, regions do not divide the image size, timm has no such weights, or the model
            refuses an argument.
        TypeError: neither `from_timm` nor `VisionTransformer` has an argument of that name.
        RuntimeError: timm has no weights with the tag `pretrained_cfg`.
    """
    if name.startswith("msvit_seg_"):
        return _create_segmenter(name, pretrained=pretrained, img_size=img_size, **options)
    _, _, coarse, name_img_size = _parse(name)
    wrapping = {key: options.pop(key) for key in _WRAPPING & options.keys()}
    if img_size is None:
        described = given_img_size(options.get("pretrained_cfg"), options.get("pretrained_cfg_overlay"))
        img_size = described or name_img_size
    if pretrained:
        vit = timm.create_model(pretrained_name(name), pretrained=True, img_size=img_size, **options)
    else:
        vit = _untrained(name, img_size, **options)
    return from_timm(vit, coarse, **wrapping)


def _create_segmenter(
    name: str,
    *,
    num_classes: int = 150,
    decode: str = "packed",
    decoder_depth: int = 2,
    dropout: float = 0.0,
    norm_eps: float = NORM_EPS,
    checkpoint_path: str | os.PathLike[str] | None = None,
    load_head: bool = True,
    **options: Any,
) -> Segmenter:
    match = _SEGMENTER_NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"name: expected msvit_seg_{{{','.join(SIZES)}}}_{{{','.join(DECODERS)}}}_patch{{{','.join(SCALES)}}}_"
            f"{{image size}}, got {name!r}"
        )
    size, decoder, patches = match.groups()
    options.setdefault("norm_layer", partial(nn.LayerNorm, eps=norm_eps))
    encoder = create_model(f"msvit_{size}_{patches}", num_classes=0, **options)
    encoder.pos_embed_interpolation = "bilinear"
    model = Segmenter(encoder, num_classes, decoder, decode, decoder_depth=decoder_depth, dropout=dropout)
    if checkpoint_path is not None:
        load_checkpoint(model, checkpoint_path, load_head=load_head)
    return model


def _untrained(
    name: str,
    img_size: int | tuple[int, int],
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    cache_dir: Any = None,  # only for weights
    **options: Any,
) -> VisionTransformer:
    size, patch_size, _, name_size = _parse(name)
    variant = pretrained_name(name) if isinstance(pretrained_cfg, str) else name
    cfg = given_cfg(variant, default_cfg((name_size, name_size)), pretrained_cfg, pretrained_cfg_overlay)
    options = {**SIZES[size], "num_classes": cfg["num_classes"], **options}
    vit = VisionTransformer(img_size=img_size, patch_size=patch_size, **options)
    cast(Any, vit).pretrained_cfg = cfg | {"num_classes": vit.num_classes}
    return vit


def from_timm(
    model_or_name: nn.Module | str,
    coarse: int = 32,
    *,
    pretrained: bool = False,
    checkpoint_path: str | os.PathLike[str] | None = None,
    load_head: bool = True,
    gate: str | nn.Module = "mlp",
    policy: Policy | None = None,
    token_mode: str = "packed",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    **timm_kwargs: Any,
) -> MixedScaleVisionTransformer:
    """Wraps a timm `VisionTransformer`; with an all-fine gate the result has the same outputs as that model.

    Parameters keep their names; those of the gate begin with "gate.". A model that is passed in shares its parameters
    with the result.

    Args:
        model_or_name: timm model of class `VisionTransformer` (ViT, DeiT, and the CLIP, SigLIP and DINOv2 towers of
            that class), or the name of one.
        coarse: width of a region in pixels, a multiple of the patch size that divides the image.
        pretrained: whether to load timm's weights, if a name is given.
        checkpoint_path: file to load afterwards, see `msvit.load_checkpoint`; None for none.
        load_head: whether to load the classifier of that file.
        gate: "mlp", "radial", "random", "entropy", "fine", "coarse", or a module, see `msvit.gates`.
        policy: token policy, see `msvit.policies`; `Threshold(0.5)` by default.
        token_mode: layout of the tokens: "packed", "trimmed" or "masked".
        mean: three floats, per-channel mean of pixels in [0, 1], by which uint8 images are normalised; by default, that
            of the timm model.
        std: three floats, per-channel standard deviation, by which uint8 images are normalised; by default, that of
            the timm model.
        timm_kwargs: arguments of `timm.create_model`, such as `img_size` and `num_classes`, if a name is given.

    Returns:
        The mixed-scale model.

    Raises:
        ValueError: timm does not know the name, or a class, feature or size of the model cannot be wrapped; the message
            names it.
        TypeError: `model_or_name` is neither a model nor a name, or arguments for a name are given with a model.
    """
    vit = supported(_timm_model(model_or_name, pretrained, timm_kwargs), coarse)
    config = getattr(vit, "pretrained_cfg", None) or {}
    mean = config.get("mean") if mean is None else mean
    std = config.get("std") if std is None else std
    height, width = vit.patch_embed.img_size
    module = make_gate(gate, coarse, (height // coarse, width // coarse), mean, std)
    model = MixedScaleVisionTransformer(vit, coarse, module, policy, token_mode, mean, std)
    if checkpoint_path is not None:
        load_checkpoint(model, checkpoint_path, load_head=load_head)
    return model


# Arguments of `from_timm` that `create_model` passes on.
_WRAPPING = {name for name, p in inspect.signature(from_timm).parameters.items() if p.kind is p.KEYWORD_ONLY} - {
    "pretrained"
}


def _timm_model(model_or_name: nn.Module | str, pretrained: bool, timm_kwargs: dict[str, Any]) -> nn.Module:
    if not isinstance(model_or_name, str):
        if pretrained or timm_kwargs:
            given = ", ".join(["pretrained"] * pretrained + list(timm_kwargs))
            raise TypeError(f"{given}: expected only with the name of a model, got a model")
        return model_or_name
    if ":" not in model_or_name and not timm.is_model(model_or_name):
        raise ValueError(f"model: timm {timm.__version__} has no model named {model_or_name!r}")
    return timm.create_model(model_or_name, pretrained=pretrained, **timm_kwargs)


def _parse(name: str) -> tuple[str, int, int, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"name: expected msvit_{{{','.join(SIZES)}}}_patch{{{','.join(SCALES)}}}_{{image size}}, got {name!r}"
        )
    size, scales, img_size = match.groups()
    return size, *SCALES[scales], int(img_size)


def pretrained_name(name: str) -> str:
    """Finds timm's name for the pretrained weights of a model.

    Args:
        name: name for `create_model`, or a timm name, which is returned unchanged.

    Returns:
        Name of timm's ViT of the same size and patch size that is closest in image size.

    Raises:
        ValueError: timm has no weights for that size and patch size.
    """
    if not name.startswith("msvit_"):
        return name
    size, patch_size, _, img_size = _parse(name)
    for candidate in dict.fromkeys((img_size, 384 if img_size >= 320 else 224, 224)):
        timm_name = f"vit_{size}_patch{patch_size}_{candidate}"
        if timm.is_model(timm_name) and timm.models.is_model_pretrained(timm_name):
            return timm_name
    raise ValueError(f"pretrained: timm has no weights for a vit_{size}_patch{patch_size}; use checkpoint_path")
