"""The `pretrained_cfg` of a model, which timm's tools read: weights, input images and head."""

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.models import PretrainedCfg, resolve_pretrained_cfg


def default_cfg(img_size: tuple[int, int], num_classes: int = 1000) -> dict[str, Any]:
    """Makes the `pretrained_cfg` that timm's tools read: the input, of `img_size` (H, W) in pixels, and the head."""
    return {
        "input_size": (3, *img_size),
        "fixed_input_size": True,
        "num_classes": num_classes,
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": IMAGENET_INCEPTION_MEAN,
        "std": IMAGENET_INCEPTION_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


def given_cfg(variant: str, base: dict[str, Any], pretrained_cfg: Any, overlay: Any) -> dict[str, Any]:
    """Makes the `pretrained_cfg` of a model without weights from the two arguments of `timm.create_model`.

    Args:
        variant: timm name of the model, to which a tag belongs.
        base: configuration if `pretrained_cfg` is None.
        pretrained_cfg: tag of timm's weights, dict or timm `PretrainedCfg`; None for none.
        overlay: values that replace those of the configuration; None for none.

    Raises:
        RuntimeError: timm has no such tag.
        TypeError: a value has a name that timm's `PretrainedCfg` lacks.
    """
    cfg: dict[str, Any] = resolve_pretrained_cfg(variant, pretrained_cfg or base, overlay).to_dict()
    return cfg


def given_img_size(pretrained_cfg: Any, overlay: Any) -> tuple[int, int] | None:
    """(height, width) in pixels if one of the two arguments of `timm.create_model` has an `input_size`, else None."""
    for values in (overlay, pretrained_cfg):
        if isinstance(values, Mapping) and values.get("input_size") is not None:
            _, height, width = values["input_size"]
            return height, width
        if isinstance(values, PretrainedCfg):
            return values.input_size[1:]
    return None
