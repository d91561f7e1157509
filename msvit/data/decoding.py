"""Decodes image files of any mode into upright 8-bit RGB: the one decoder of figures, training and evaluation."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageFile, ImageOps

# An image of 100 million pixels takes 0.4 GB of memory while it is decoded if it is RGB, 1.3 GB if it has floats.
MAX_PIXELS = 100_000_000
# ImageNet's mean. A transparent pixel of this colour is nearly 0 after normalisation, so that gates see no detail.
MEAN_COLOUR = (124, 116, 104)

# Values that lie outside of the range by at most this share of white are clipped: resampling overshoots a little.
_OVERSHOOT = 0.5
# Reading a file again gives the same error. Other errors of the system, such as those of a network drive, may pass.
_LASTING = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP)
_TIFF_BITS, _TIFF_PHOTOMETRIC = 258, 262
_PILLOW_SETTINGS = threading.Lock()

_T = TypeVar("_T")


class UnreadableImageError(ValueError):
    """A file is missing, is not an image that Pillow can decode, or has too many pixels; the message names it."""


def decode_image(
    source: str | os.PathLike[str] | BinaryIO, *, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Image.Image:
    """Reads one image as upright 8-bit RGB, see `to_rgb`. Of an animation or of several pages it reads the first.

    Args:
        source: image file of any format and mode that Pillow can decode, as a path or opened for reading.
        max_pixels: largest number of pixels, height times width. Larger images are refused before they are decoded.
        name: name of the image in messages; None for the path.

    Returns:
        The image in its own size, rotated upright by its EXIF data.

    Raises:
        UnreadableImageError: the file is missing, truncated, corrupt, not an image or too large.
        OSError: the system failed to read the file, which may not happen again.
    """
    return decode(to_rgb, source, max_pixels=max_pixels, name=name)


def decode(
    convert: Callable[[Image.Image], _T],
    source: str | os.PathLike[str] | BinaryIO,
    *,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> _T:
    """Reads one image and converts it; `decode_image` describes the arguments and the errors.

    Args:
        convert: function of the image with all of its pixels decoded, which it may change. Its errors count as those
            of an unreadable file.
        source: image file.
        max_pixels: largest number of pixels.
        name: name of the image in messages.

    Returns:
        The result of `convert`.

    Raises:
        UnreadableImageError: the file cannot be read or converted; one that `convert` raises passes as it is.
        OSError: the system failed to read the file, which may not happen again.
    """
    if name is None:
        name = os.fspath(source) if isinstance(source, (str, os.PathLike)) else str(source)
    try:
        with _strict_pillow(), Image.open(source) as image:
            check_size(image, max_pixels, name)
            image.load()
        return convert(image)
    except (UnreadableImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise many kinds of errors for a broken file
        if isinstance(error, OSError) and error.errno not in (None, *_LASTING):
            raise
        raise UnreadableImageError(f"{name}: not a readable image ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to 8-bit RGB and rotates it upright.

    Transparent pixels are blended with `MEAN_COLOUR`. 16-bit grey keeps its upper 8 bits. White of 32-bit grey is the
    smallest of 255 and 65535 that fits the values of the image, or 1 if they are floats, so that floats in [0, 1]
    become 0 to 255; values up to half of white outside of the range are clipped.

    Args:
        image: image with all of its pixels decoded; it may be changed.

    Returns:
        The same image or a new one.

    Raises:
        ValueError: the mode is unknown, or pixels are not finite or fit no white.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        image = _eight_bits(image)
    if not image.has_transparency_data:
        return _convert(image, "RGB")
    if image.mode == "La":  # Pillow converts it to no other mode
        image = image.convert("LA")
    layer = _convert(image, "RGBA")
    canvas = Image.new("RGB", layer.size, MEAN_COLOUR)
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def check_size(image: Image.Image, max_pixels: int, name: str) -> None:
    """Raises UnreadableImageError if an image, decoded or not, has too many pixels."""
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise UnreadableImageError(
            f"{name}: expected at most {max_pixels:,} pixels, got {image.width:,} x {image.height:,} = {pixels:,}; "
            "--max-pixels (max_pixels in Python) sets the limit"
        )


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """The image in another mode, without the copy that Pillow makes if the mode is the same."""
    return image if image.mode == mode else image.convert(mode)


@contextmanager
def _strict_pillow() -> Iterator[None]:
    """Sets aside two settings of Pillow: to accept truncated files, and its own limit on pixels."""
    with _PILLOW_SETTINGS:
        before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 12, 16 or 32 bits or of floats as 8 bits, with the transparency of its PNG file."""
    pixels = np.asarray(image)
    white = _white(image, pixels)
    values = pixels
    if _tiff_tag(image, _TIFF_PHOTOMETRIC, 1) == 0:  # white is 0; Pillow inverts only 8 bits and fewer
        values = white - pixels
    if image.mode == "F":
        scaled = values * np.float32(255 / white)
        np.rint(scaled, out=scaled)
    else:
        scaled = values // ((white + 1) // 256)
    grey = Image.fromarray(scaled.clip(0, 255, out=scaled).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(np.where(pixels == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _white(image: Image.Image, pixels: np.ndarray) -> int:
    """The value of white: from the number of bits if the file has one, else from the values."""
    if image.mode.startswith("I;"):
        return int(2 ** _tiff_tag(image, _TIFF_BITS, (16,))[0] - 1)
    if image.mode == "I" and image.format != "TIFF":  # PNG and PGM of 16 bits
        return 65535
    low, high = float(pixels.min()), float(pixels.max())
    levels = (1, 255, 65535) if image.mode == "F" else (255, 65535)
    white = next((level for level in levels if high <= level + _OVERSHOOT * level), None)
    if white is not None and low >= -_OVERSHOOT * white:
        return white
    raise ValueError(f"expected values from 0 to one of {', '.join(map(str, levels))}, got {low:g} to {high:g}")


def _tiff_tag(image: Image.Image, tag: int, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(tag, default)
