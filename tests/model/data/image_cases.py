"""Image files of one colour in every mode, and the colour in which they must be read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from msvit.data import MEAN_COLOUR

SIZE = 24
ORANGE, GREY = (200, 100, 40), (128, 128, 128)
_BYTES = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def flat(value: Any, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (SIZE, SIZE), value)


def array(value: float, dtype: Any) -> Image.Image:
    return Image.fromarray(np.full((SIZE, SIZE), value, dtype))


def noise_under(alpha: int) -> Image.Image:
    """Random pixels, all of the same opacity."""
    image = Image.fromarray(_BYTES)
    image.putalpha(alpha)
    return image


def palette(**options: Any) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        image = flat(0, "P")
        image.putpalette([*ORANGE, 0, 0, 255])
        image.save(path, **options)

    return save


def animation(path: Path) -> None:
    flat(ORANGE).save(path, save_all=True, append_images=[flat((0, 0, 255))], duration=50)


def one_pixel_beyond(path: Path) -> None:
    """Floats in [0, 1] but for a little overshoot, as a resize leaves it."""
    pixels = np.full((SIZE, SIZE), 0.5, np.float32)
    pixels[0, 0] = 1.02
    Image.fromarray(pixels).save(path)


def bright_corner(white: float, dtype: Any) -> Callable[[Path], None]:
    """Half of white, but for a white corner that shows what white is; the centre of the result does not contain it."""

    def save(path: Path) -> None:
        pixels = np.full((SIZE, SIZE), white / 2, dtype)
        pixels[0, 0] = white
        Image.fromarray(pixels).save(path)

    return save


def big_endian(path: Path) -> None:
    flat(0x80FF, "I;16B").save(path)


# File name: how to write it, and its colour.
CASES: dict[str, tuple[Callable[[Path], None], tuple[int, int, int]]] = {
    "rgb.png": (flat(ORANGE).save, ORANGE),
    "rgb.bmp": (flat(ORANGE).save, ORANGE),
    "rgb.ppm": (flat(ORANGE).save, ORANGE),
    "rgb.tiff": (flat(ORANGE).save, ORANGE),
    "upper-case.TIF": (flat(ORANGE).save, ORANGE),
    "rgb.webp": (lambda path: flat(ORANGE).save(path, lossless=True), ORANGE),
    "bits.png": (flat(1, "1").save, (255, 255, 255)),
    "grey.png": (flat(77, "L").save, (77, 77, 77)),
    "palette.gif": (palette(), ORANGE),
    "animation.gif": (animation, ORANGE),
    "cmyk.tiff": (flat((0, 255, 255, 0), "CMYK").save, (255, 0, 0)),
    "ycbcr.tiff": (flat((128, 128, 128), "YCbCr").save, GREY),
    "lab.tiff": (flat((128, 128, 128), "LAB").save, (119, 119, 119)),  # 128 is the middle of each channel
    "grey-16.png": (array(0x80FF, np.uint16).save, GREY),
    "grey-16.pgm": (array(0x80FF, np.uint16).save, GREY),
    "dark-16.pgm": (array(0x0101, np.uint16).save, (1, 1, 1)),
    "little-endian-16.tiff": (array(0x80FF, np.uint16).save, GREY),
    "big-endian-16.tiff": (big_endian, GREY),
    "white-is-0-16.tiff": (lambda path: array(0x7F00, np.uint16).save(path, tiffinfo={262: 0}), GREY),
    "transparent-16.png": (lambda path: array(0x80FF, np.uint16).save(path, transparency=0x80FF), MEAN_COLOUR),
    "integers-8.tiff": (array(128, np.int32).save, GREY),
    "integers-16.tiff": (array(0x80FF, np.int32).save, GREY),
    "floats-1.tiff": (bright_corner(1, np.float32), GREY),
    "floats-overshoot.tiff": (one_pixel_beyond, GREY),
    "floats-255.tiff": (bright_corner(255, np.float32), GREY),
    "floats-16.tiff": (bright_corner(65535, np.float32), GREY),
    "opaque.png": (flat((*ORANGE, 255), "RGBA").save, ORANGE),
    "transparent.png": (noise_under(0).save, MEAN_COLOUR),
    "transparent.webp": (lambda path: noise_under(0).save(path, lossless=True, exact=True), MEAN_COLOUR),
    "transparent.tiff": (noise_under(0).save, MEAN_COLOUR),
    "half.png": (flat((*ORANGE, 51), "RGBA").save, (139, 113, 91)),  # a fifth of orange
    "grey-transparent.png": (flat((200, 0), "LA").save, MEAN_COLOUR),
    "colour-key.png": (lambda path: flat(ORANGE).save(path, transparency=ORANGE), MEAN_COLOUR),
    "palette-index.png": (palette(transparency=0), MEAN_COLOUR),
    "palette-alphas.png": (palette(transparency=b"\x00\xff"), MEAN_COLOUR),
    "palette-transparent.gif": (palette(transparency=0), MEAN_COLOUR),
}


def write_cases(folder: Path) -> dict[str, Path]:
    """Writes all files of `CASES` and returns their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in CASES}
    for name, path in paths.items():
        CASES[name][0](path)
    return paths
