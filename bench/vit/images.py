"""The images that the models are timed on."""

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from bench.vit.tokens import IMAGE_SIZES
from msvit.data import load_images


def image_source(folder: Path | None, count: int, device: torch.device, console: Console) -> Callable[[int], Tensor]:
    """A function from a size in pixels to uint8 images [count, 3, size, size]; files are read for MSViT's two sizes."""

    @cache
    def images(size: int) -> Tensor:
        if size not in IMAGE_SIZES:
            return resized(images(min(IMAGE_SIZES)), size)
        return images_from_files(folder, size, count, console).to(device)

    return images


def images_from_files(folder: Path | None, size: int, count: int, console: Console) -> Tensor:
    """uint8 images [count, 3, size, size] of a folder, or of scikit-image; they are repeated if there are too few."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = load_images(folder, size, limit=count)
    for warning in caught:
        console.print(f"[yellow]{warning.message}[/]")
    if len(loaded) < count:
        console.print(f"{len(loaded)} images for batches of {count}: they are repeated")
    return loaded[torch.arange(count) % len(loaded)]


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 images scaled to `size` pixels."""
    # On a GPU torch cannot resize integers.
    scaled = F.interpolate(images.cpu(), (size, size), mode="bilinear", antialias=True)
    return scaled.to(images.device)
