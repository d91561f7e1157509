"""Mixed-scale vision transformers whose token count follows the image: models, gates, policies, checkpoints.

Importing registers the models with timm.
"""

from msvit import gates, losses, policies, reducers
from msvit.checkpoint import load_checkpoint, save_checkpoint
from msvit.macs import gate_macs, macs
from msvit.models import MixedScaleVisionTransformer, Segmenter, create_model, from_timm

__all__ = [
    "MixedScaleVisionTransformer",
    "Segmenter",
    "create_model",
    "from_timm",
    "gate_macs",
    "gates",
    "load_checkpoint",
    "losses",
    "macs",
    "policies",
    "reducers",
    "save_checkpoint",
]
