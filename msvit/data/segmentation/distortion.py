"""Random changes of colour, as in the recipes of Segmenter and mmsegmentation (there: PhotoMetricDistortion)."""

import random

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

_BRIGHTNESS = 32.0  # added, in 1/255
_CONTRAST = (0.5, 1.5)  # factor of all values
_SATURATION = (0.5, 1.5)  # factor of HSV's saturation
_HUE = 0.1  # turns; 18 of OpenCV's 180 steps


def distort_colours(image: Tensor) -> Tensor:
    """Changes brightness, contrast, saturation and hue, each with probability 1/2.

    Contrast, which here multiplies all values, comes with equal probability after brightness or after hue. Random
    numbers come from the module `random`.

    Args:
        image: uint8 [3, H, W], RGB.

    Returns:
        uint8 [3, H, W].
    """
    if _coin():
        image = add_brightness(image, random.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_first = _coin()
    if contrast_first:
        image = _change_contrast(image)
    if _coin():
        image = scale_saturation(image, random.uniform(*_SATURATION))
    if _coin():
        image = F.adjust_hue(image, random.uniform(-_HUE, _HUE))
    return image if contrast_first else _change_contrast(image)


def add_brightness(image: Tensor, delta: float) -> Tensor:
    """Adds `delta`, in 1/255, to a uint8 image."""
    return (image.float() + delta).clamp_(0, 255).to(torch.uint8)


def scale_saturation(image: Tensor, factor: float) -> Tensor:
    """Multiplies the saturation in HSV and keeps hue and value.

    With value v = max(r, g, b) and saturation (v - min) / v, each channel c becomes v - (v - c) f, where f is `factor`,
    at most the one that makes the saturation 1, v / (v - min).
    """
    channels = image.float()
    value, least = channels.amax(0), channels.amin(0)
    # Where v = min, v - c is 0 for every channel, so that the clamped divisor changes nothing.
    scale = (value / (value - least).clamp_(min=1)).clamp_(max=factor)
    return (value - (value - channels) * scale).round_().clamp_(0, 255).to(torch.uint8)


def _change_contrast(image: Tensor) -> Tensor:
    # The recipe's contrast is torchvision's brightness: a factor of all values, not of the distance from their mean.
    return F.adjust_brightness(image, random.uniform(*_CONTRAST)) if _coin() else image


def _coin() -> bool:
    return random.random() < 0.5
