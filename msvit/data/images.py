"""Finds image files, and reads them into uint8 tensors of one size."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from msvit.data.decoding import MAX_PIXELS, UnreadableImageError, decode_image
from msvit.data.samples import sample_photographs

IMAGE_SUFFIXES = (
    ".avif",
    ".bmp",
    ".gif",
    ".jfif",
    ".jp2",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)


def load_images(
    folder: str | os.PathLike[str] | None, size: int, *, limit: int | None = None, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """Reads the images of a folder and its subfolders, sorted by path, or the sample photographs.

    A file that cannot be decoded is left out with a warning that names it; a last warning counts such files.

    Args:
        folder: folder of images; None for the photographs of scikit-image.
        size: height and width of the result in pixels; images are scaled and cropped at the centre.
        limit: largest number of images to read; None for all.
        max_pixels: largest number of pixels of a file; larger ones are left out.

    Returns:
        uint8 [number of images, 3, size, size], RGB.

    Raises:
        ValueError: the folder does not exist or has no readable image; `size`, `limit` or `max_pixels` is below 1.
        OSError: the system failed to read a file, which may not happen again.
    """
    for name, value in (("size", size), ("limit", limit), ("max_pixels", max_pixels)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected 1 or more, got {value}")
    paths = list(sample_photographs().values()) if folder is None else list_images(folder)
    images: list[Tensor] = []
    left_out = 0
    for path in paths:
        if len(images) == limit:
            break
        try:
            images.append(read_image(path, size, max_pixels=max_pixels))
        except UnreadableImageError as error:
            left_out += 1
            warnings.warn(f"skipped: {error}", stacklevel=2)
    if not images:
        raise ValueError(f"{folder}: expected at least one readable image, got none of {len(paths)} files")
    if left_out:
        warnings.warn(f"{folder}: images read: {len(images)}, files left out: {left_out}", stacklevel=2)
    return torch.stack(images)


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Lists the files with one of `IMAGE_SUFFIXES` in a folder and its subfolders, sorted, without hidden ones.

    Args:
        folder: folder of images; links to folders in it are followed.

    Returns:
        At least one path, each beginning with `folder`.

    Raises:
        ValueError: `folder` is not a folder, or has no such file.
    """
    paths = sorted(path for _, paths in walk_files(folder) for path in paths if is_image_file(path))
    if not paths:
        raise ValueError(f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), got none")
    return paths


def is_image_file(path: str | os.PathLike[str]) -> bool:
    """Whether the name of a file ends with one of `IMAGE_SUFFIXES`, in any case."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def walk_files(folder: str | os.PathLike[str]) -> Iterator[tuple[Path, list[Path]]]:
    """Walks a folder and its subfolders, without hidden files and folders.

    Args:
        folder: folder of images; links to folders in it are followed.

    Yields:
        A folder without subfolders or with files, and its files.

    Raises:
        ValueError: `folder` is not a folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{folder}: expected a folder of images, got {'a file' if root.exists() else 'no such path'}")
    for parent, folders, files in os.walk(root, followlinks=True):
        here = Path(parent)
        # A link to a folder on the way here would be followed without end.
        folders[:] = [name for name in folders if name[0] != "." and not _is_above(here / name, here)]
        found = [here / name for name in files if name[0] != "."]
        if found or not folders:
            yield here, found


def read_image(path: str | os.PathLike[str], size: int, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Reads one image, scaled and cropped at the centre; `decode_image` describes its colours.

    Args:
        path: image file of any format and mode that Pillow can decode.
        size: height and width of the result in pixels.
        max_pixels: largest number of pixels of the file. A larger one is refused before it is decoded.

    Returns:
        uint8 [3, size, size], RGB, on the CPU.

    Raises:
        UnreadableImageError: the file is missing, truncated, corrupt, not an image or too large; the message names it.
        OSError: the system failed to read the file, which may not happen again.
    """
    image = decode_image(path, max_pixels=max_pixels)
    return to_tensor(ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC))


def to_tensor(image: Image.Image) -> Tensor:
    """Copies an RGB image to uint8 [3, H, W], contiguous, on the CPU."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _is_above(link: Path, folder: Path) -> bool:
    if not link.is_symlink():
        return False
    target = link.resolve()
    return any(each.resolve().is_relative_to(target) for each in (folder, *folder.parents))
