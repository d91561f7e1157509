"""Small and randomised models, so that no equality holds for trivial reasons."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

POOLS: list[dict[str, Any]] = [
    {},
    {"global_pool": "avg"},
    {"global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 2},
    {"global_pool": "map", "class_token": False},
    {"global_pool": "map", "reg_tokens": 1},
]
POOL_IDS = ["token", "avg", "avg-prefix", "map", "map-prefix"]

LOGITS_TOLERANCE = 1e-4  # fp32, absolute, as the project promises
FP64_TOLERANCE = 1e-12  # absolute: rounding of a few blocks


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Sets random values for parameters that start near zero or one, and evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif "gamma" in name:
                parameter.copy_(0.5 + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise)
            elif any(part in name for part in ("pos_embed", "cls_token", "reg_token", "latent")):
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model.eval()


def small_vit(**kwargs: Any) -> VisionTransformer:
    """A ViT of two blocks with two heads, for images of 48 pixels with patches of 8."""
    sizes = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return randomise(VisionTransformer(**{**sizes, **kwargs}))


def images_of(size: int, batch: int = 2, seed: int = 1) -> Tensor:
    """Smooth random images in fp32, roughly normalised: [batch, 3, size, size]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 5, 5, generator=generator)
    noise = torch.randn(batch, 3, size, size, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bilinear") + 0.3 * noise


def mask_of(shape: tuple[int, ...], fine: float = 0.5, seed: int = 2) -> Tensor:
    """Random bool mask with a share of about `fine` True values."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < fine


def downsampled(vit: VisionTransformer, factor: int) -> VisionTransformer:
    """The same timm model for images smaller by `factor`, with the averaged position grid."""
    small = copy.deepcopy(vit)
    height, width = vit.patch_embed.grid_size
    num_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    prefix, grid = vit.pos_embed.detach().split([num_prefix, height * width], dim=1)
    grid = F.avg_pool2d(grid.mT.unflatten(2, (height, width)), factor).flatten(2).mT
    small.patch_embed.set_input_size(tuple(side // factor for side in vit.patch_embed.img_size))
    small.pos_embed = nn.Parameter(torch.cat([prefix, grid], dim=1))
    return small.eval()
