"""Reads image files into uint8 tensors of one size."""

import os
import threading
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from msvit.data.samples import sample_photographs

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_STRICT = threading.Lock()


def load_images(folder: str | os.PathLike[str] | None, size: int, *, limit: int | None = None) -> Tensor:
    """Reads the images of a folder and its subfolders, sorted by path, or the sample photographs.

    A file that cannot be decoded is left out with a warning that names it.

    Args:
        folder: folder of images; None for the photographs of scikit-image.
        size: height and width of the result in pixels; images are scaled and cropped at the centre.
        limit: largest number of images to read; None for all.

    Returns:
        uint8 [number of images, 3, size, size], RGB.

    Raises:
        ValueError: the folder does not exist or has no readable image; `size` or `limit` is below 1.
    """
    for name, value in (("size", size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected 1 or more, got {value}")
    paths = list(sample_photographs().values()) if folder is None else list_images(folder)
    images: list[Tensor] = []
    for path in paths:
        if len(images) == limit:
            break
        try:
            images.append(read_image(path, size))
        except ValueError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
    if not images:
        raise ValueError(f"{folder}: expected at least one readable image, got none of {len(paths)} files")
    return torch.stack(images)


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Lists the files with one of `IMAGE_SUFFIXES` in a folder and its subfolders, sorted, without hidden ones.

    Args:
        folder: folder of images.

    Returns:
        At least one path, each beginning with `folder`.

    Raises:
        ValueError: `folder` is not a folder, or has no such file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{folder}: expected a folder of images, got {'a file' if root.exists() else 'no such path'}")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    if not paths:
        raise ValueError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), got none")
    return paths


def read_image(path: str | os.PathLike[str], size: int) -> Tensor:
    """Reads one image, scaled and cropped at the centre, and rotated upright by its EXIF data.

    Args:
        path: image file of any format and mode that Pillow can decode.
        size: height and width of the result in pixels.

    Returns:
        uint8 [3, size, size], RGB, on the CPU.

    Raises:
        ValueError: the file is missing, truncated, corrupt or not an image; the message names it.
    """
    image = decode_image(path)
    try:
        fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    except Exception as error:  # Pillow raises many kinds of errors for unusual images
        raise _unreadable(path, error) from error
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()


def decode_image(path: str | os.PathLike[str]) -> Image.Image:
    """Reads one image in its own size and mode, rotated upright by its EXIF data; 16-bit grey becomes 8-bit.

    Args:
        path: image file of any format and mode that Pillow can decode.

    Returns:
        The image with all of its pixels decoded.

    Raises:
        ValueError: the file is missing, truncated, corrupt or not an image; the message names it.
    """
    try:
        image = ImageOps.exif_transpose(_decode(path))
        if image.mode[0] == "I":  # a conversion to RGB would clip 16 bits
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    except Exception as error:  # decoders raise many kinds of errors for a broken file
        raise _unreadable(path, error) from error
    return image


def _unreadable(path: str | os.PathLike[str], error: Exception) -> ValueError:
    return ValueError(f"{os.fspath(path)}: not a readable image ({error})")


def _decode(path: str | os.PathLike[str]) -> Image.Image:
    """Decodes all pixels; a truncated file is an error even if another library asked Pillow to accept it."""
    with _STRICT:
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            with Image.open(path) as image:
                image.load()
                return image.copy()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient
