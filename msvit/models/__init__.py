"""Mixed-scale vision transformers made from timm's modules."""

from msvit.models.factory import create_model, from_timm
from msvit.models.registry import NAMES
from msvit.models.segmenter import Segmenter
from msvit.models.vit import MixedScaleVisionTransformer

__all__ = ["NAMES", "MixedScaleVisionTransformer", "Segmenter", "create_model", "from_timm"]
