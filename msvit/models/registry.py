"""Registers the models with timm, so that `timm.create_model("msvit_small_patch16_32_224")` works."""

from collections.abc import Callable
from typing import Any

from timm.models import generate_default_cfgs, register_model

from msvit.models.factory import SCALES, SIZES, create_model
from msvit.models.timm_config import default_cfg
from msvit.models.vit import MixedScaleVisionTransformer

# Regions of 64 pixels divide 384 but not 224 pixels.
_IMG_SIZES = {"16_32": (224, 384), "8_16": (224, 384), "32_64": (256, 384)}

NAMES = tuple(
    f"msvit_{size}_patch{scales}_{img_size}" for size in SIZES for scales in SCALES for img_size in _IMG_SIZES[scales]
)


# timm looks for this name in the module of an entry point.
default_cfgs = generate_default_cfgs({name: default_cfg((int(name.rpartition("_")[2]),) * 2) for name in NAMES})


def _entrypoint(name: str) -> Callable[..., MixedScaleVisionTransformer]:
    def entrypoint(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        **kwargs: Any,
    ) -> MixedScaleVisionTransformer:
        given = {
            "pretrained_cfg": pretrained_cfg,
            "pretrained_cfg_overlay": pretrained_cfg_overlay,
            "cache_dir": cache_dir,
        }
        kwargs |= {key: value for key, value in given.items() if value is not None}
        return create_model(name, pretrained=pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__doc__ = f"`msvit.create_model({name!r}, ...)`."
    return entrypoint


__all__ = ["NAMES"]

for _name in NAMES:
    globals()[_name] = register_model(_entrypoint(_name))
