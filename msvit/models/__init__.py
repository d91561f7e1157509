"""Mixed-scale vision transformers made from timm's modules."""

from msvit.models.factory import create_model, from_timm
from msvit.models.registry import NAMES
from msvit.models.vit import MixedScaleVisionTransformer

__all__ = ["NAMES", "MixedScaleVisionTransformer", "create_model", "from_timm"]
