"""Reading image files into uint8 tensors of one size."""

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
    """The images of a folder and its subfolders, sorted by path, or the sample photographs.

    A file that cannot be decoded to its end is named in a warning and left out.

    Args:
        folder: where to look; None for the photographs of scikit-image.
        size: height and width of the result in pixels; images are scaled, then cropped at the centre.
        limit: stop after that many images.

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
    """Files with one of `IMAGE_SUFFIXES` in a folder and its subfolders, sorted; hidden ones are left out.

    Raises:
        ValueError: `folder` is not a folder, or has no such file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{folder}: expected a folder of images, got {'a file' if root.exists() else 'nothing there'}")
    paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    paths = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts)]
    if not paths:
        raise ValueError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), got none")
    return paths


def read_image(path: str | os.PathLike[str], size: int) -> Tensor:
    """One image, uint8 [3, size, size], scaled and cropped at the centre, upright as its EXIF data says.

    Raises:
        ValueError: naming the file, where it is missing, truncated, corrupt or no image.
    """
    try:
        image = ImageOps.exif_transpose(_decode(path))
        if image.mode[0] == "I":  # 16 bits of grey, which a conversion to RGB would clip
            image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
        fitted = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)
    except Exception as error:  # decoders raise whatever a broken file makes them stumble over
        raise ValueError(f"{os.fspath(path)}: not a readable image ({error})") from error
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).contiguous()


def _decode(path: str | os.PathLike[str]) -> Image.Image:
    """Decodes all pixels; a file that ends early is an error even where another library asked Pillow to overlook it."""
    with _STRICT:
        lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            with Image.open(path) as image:
                image.load()
                return image.copy()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient
