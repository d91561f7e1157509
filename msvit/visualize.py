"""Draws the coarse and fine regions of images."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_GAP = 16
_CAPTION = 34
# Share of colour and brightness that coarse tokens keep, so that fine tokens stand out.
_COARSE_COLOUR = 0.55
_COARSE_LINE = (255, 176, 0)
_FINE_LINE = (255, 255, 255)


def draw_tokens(image: Tensor, fine_mask: Tensor, *, scale_factor: int = 2, width: int = 448) -> Image.Image:
    """Draws the outlines of all tokens on an image: coarse tokens are large and dimmed, fine tokens small.

    Args:
        image: uint8 [3, H, W].
        fine_mask: bool [Hc, Wc], True for fine regions; Hc divides H and Wc divides W.
        scale_factor: number of fine tokens along one side of a region.
        width: width of the result in pixels, rounded down so that all tokens of a scale have the same size.

    Returns:
        An RGB picture, at most `width` pixels wide.

    Raises:
        ValueError: the shapes do not match, or `width` is too small for the outlines.
    """
    if image.ndim != 3 or image.shape[0] != 3 or fine_mask.ndim != 2:
        raise ValueError(
            f"image, fine_mask: expected [3, H, W] and [Hc, Wc], got {[*image.shape]} and {[*fine_mask.shape]}"
        )
    rows, columns = fine_mask.shape
    if image.shape[1] * columns != image.shape[2] * rows:
        raise ValueError(f"fine_mask: expected square regions of an image {[*image.shape]}, got {[*fine_mask.shape]}")
    side = width // columns // scale_factor * scale_factor
    if side < 4 * scale_factor:
        raise ValueError(f"width: expected at least {4 * scale_factor * columns} pixels, got {width}")
    picture = to_picture(image, (columns * side, rows * side))
    fine = fine_mask.cpu().numpy()
    picture = _dim(picture, ~fine, side)
    draw = ImageDraw.Draw(picture)
    for row, column in np.ndindex(rows, columns):
        cells, line = (scale_factor, _FINE_LINE) if fine[row, column] else (1, _COARSE_LINE)
        _outline(draw, column * side, row * side, side // cells, cells, line)
    return picture


def to_picture(image: Tensor, size: tuple[int, int]) -> Image.Image:
    """uint8 [3, H, W] as an RGB picture of `size`, (width, height) in pixels."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize(size, Image.Resampling.LANCZOS)


def side_by_side(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Places pictures side by side on a white background, each above its caption.

    Args:
        pictures: one or more RGB pictures of any size.
        captions: one line of text for each picture; the middle of a long one is left out.

    Returns:
        An RGB picture.

    Raises:
        ValueError: there is no picture, or the number of captions differs from that of pictures.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(
            f"pictures, captions: expected one or more pairs, got {len(pictures)} pictures and {len(captions)} captions"
        )
    height = max(picture.height for picture in pictures)
    total = sum(picture.width for picture in pictures) + _GAP * (len(pictures) - 1)
    canvas = Image.new("RGB", (total, height + _CAPTION), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=17)
    left = 0
    for picture, caption in zip(pictures, captions, strict=True):
        canvas.paste(picture, (left, 0))
        text = shortened(caption, font, picture.width)
        draw.text((left + picture.width / 2, height + _CAPTION / 2 + 2), text, "#222222", font, anchor="mm")
        left += picture.width + _GAP
    return canvas


def shortened(text: str, font: Font, width: float) -> str:
    """The text or, if it is wider than `width` pixels, its beginning and end with "..." between them."""
    kept = len(text)
    fitted = text
    while kept > 1 and font.getlength(fitted) > width:
        kept -= 1
        fitted = f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"
    return fitted


def _dim(picture: Image.Image, coarse: np.ndarray, side: int) -> Image.Image:
    """Reduces the colour and brightness of coarse regions."""
    pixels = np.asarray(picture).astype(np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    dimmed = (_COARSE_COLOUR * pixels + (1 - _COARSE_COLOUR) * grey) * _COARSE_COLOUR
    where = coarse.repeat(side, axis=0).repeat(side, axis=1)[..., None]
    return Image.fromarray(np.where(where, dimmed, pixels).round().astype(np.uint8))


def _outline(draw: ImageDraw.ImageDraw, left: int, top: int, side: int, cells: int, line: tuple[int, int, int]) -> None:
    """Draws cells x cells squares, each a line inside a dark rim, which is visible on any background."""
    for i, j in np.ndindex(cells, cells):
        x, y = left + int(j) * side, top + int(i) * side
        box = (x, y, x + side - 1, y + side - 1)
        draw.rectangle(box, outline=(0, 0, 0))
        inner = math.ceil(side / 40)
        draw.rectangle((box[0] + 1, box[1] + 1, box[2] - 1, box[3] - 1), outline=line, width=inner)
