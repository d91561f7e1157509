"""Decodes label files: PNG with one channel, whose values or palette indices are classes."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from msvit.data.decoding import MAX_PIXELS, UnreadableImageError, decode

# Label of pixels without a class, unless a data set has another one.
IGNORE_INDEX = 255

# Older versions of Pillow read 16 bits as "I".
_MODES = ("L", "P", "I;16", "I")


def decode_label(path: Path, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads the values of a label file.

    Args:
        path: PNG file with one channel of 8 or 16 bits, or with a palette, whose indices are the values.
        max_pixels: largest number of pixels. A larger file is refused before it is decoded.

    Returns:
        int32 [H, W], rotated upright by the EXIF data of the label file itself, as `decode_image` rotates images.

    Raises:
        UnreadableImageError: the file is missing, damaged, too large or has another mode, such as RGB.
        OSError: the system failed to read the file, which may not happen again.
    """

    def values(image: Image.Image) -> np.ndarray:
        if image.mode not in _MODES:
            raise UnreadableImageError(
                f"{path}: expected a label file of one channel (mode {', '.join(_MODES[:3])}) whose values or palette "
                f"indices are classes, got mode {image.mode}"
            )
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image).astype(np.int32)

    return decode(values, path, max_pixels=max_pixels)


def to_classes(
    values: np.ndarray, num_classes: int, *, reduce_zero_label: bool, ignore_index: int, name: str
) -> np.ndarray:
    """Turns the values of a label file into classes.

    Args:
        values: int32 [H, W].
        num_classes: number of classes.
        reduce_zero_label: True if 0 is no class and class i is value i + 1, as in ADE20K.
        ignore_index: value of pixels without a class, both in the file and in the result.
        name: name of the file in messages.

    Returns:
        uint8 [H, W], classes from 0 to num_classes - 1, or `ignore_index`.

    Raises:
        ValueError: a value is no class.
    """
    if reduce_zero_label:
        without = (values == 0) | (values == ignore_index)
        classes = np.where(without, ignore_index, values - 1)
    else:
        without = values == ignore_index
        classes = values
    wrong = values[((classes < 0) | (classes >= num_classes)) & ~without]
    if wrong.size:
        first = int(reduce_zero_label)
        advice = "" if reduce_zero_label else "; if 0 is no class and classes begin at 1, set reduce_zero_label"
        raise ValueError(
            f"{name}: expected values from {first} to {num_classes - 1 + first} for {num_classes} classes, or "
            f"{ignore_index} for none, got {wrong[0]}{advice}"
        )
    return classes.astype(np.uint8)
