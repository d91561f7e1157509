"""Pictures of segmentations: classes blended over the photograph, and a legend of the classes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from msvit.palette import class_colours
from msvit.visualize import shortened, to_picture

# Share of the class colour; the rest is the photograph without colour, so that it does not change the hue.
_BLEND = 0.62
_EDGE = 0.35  # brightness of the line between two classes
_ENTRY_WIDTH, _ENTRY_HEIGHT, _SWATCH = 230, 28, 18
_SHARE_WIDTH = 60
_GAP = 18
_TEXT, _OTHER = "#222222", (170, 170, 170)


class LegendEntry(NamedTuple):
    """A row of a legend.

    Attributes:
        name: name of the class.
        colour: sRGB.
        share: share of the pixels, in [0, 1].
    """

    name: str
    colour: tuple[int, int, int]
    share: float


def draw_segmentation(image: Tensor, labels: Tensor, num_classes: int, size: tuple[int, int]) -> Image.Image:
    """Blends the colours of classes over a photograph, with a dark line between two classes.

    Args:
        image: uint8 [3, H, W].
        labels: integers [H, W], class of each pixel; where a label is no class, the photograph is grey.
        num_classes: number of classes.
        size: (width, height) of the picture in pixels.

    Returns:
        An RGB picture.
    """
    photograph = to_picture(image, size)
    classes = np.asarray(Image.fromarray(labels.cpu().numpy().astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    grey = np.asarray(photograph.convert("L"), dtype=np.float32)[..., None]
    colours = class_colours(num_classes)[classes.clip(0, num_classes - 1)]
    is_class = ((classes >= 0) & (classes < num_classes))[..., None]
    pixels = np.where(is_class, _BLEND * colours + (1 - _BLEND) * grey, grey)
    pixels[_edges(classes)] *= _EDGE
    return Image.fromarray(pixels.round().astype(np.uint8))


def legend_of(labels: Tensor, names: Sequence[str], limit: int = 12) -> list[LegendEntry]:
    """Lists the classes of a segmentation, largest first.

    Args:
        labels: integers [H, W], class of each pixel.
        names: names of all classes, above every label.
        limit: number of classes with an entry of their own; the last entry counts further classes together.

    Returns:
        Entries whose shares sum to 1.
    """
    shares = np.bincount(labels.cpu().numpy().ravel(), minlength=len(names)) / labels.numel()
    largest = [int(index) for index in np.argsort(-shares, kind="stable") if shares[index]]
    colours = class_colours(len(names)).tolist()
    entries = [LegendEntry(names[i], (*colours[i],), float(shares[i])) for i in largest[:limit]]
    if more := largest[limit:]:
        entries.append(LegendEntry(f"other ({len(more)} classes)", _OTHER, float(shares[more].sum())))
    return entries


def draw_legend(entries: Sequence[LegendEntry], width: int) -> Image.Image:
    """Draws a legend in columns: colour, name and share of each class. The middle of a long name is left out.

    Args:
        entries: one or more entries.
        width: width of the picture in pixels.

    Returns:
        An RGB picture on a white background.
    """
    columns = min(max(1, (width + _GAP) // (_ENTRY_WIDTH + _GAP)), len(entries))
    rows = math.ceil(len(entries) / columns)
    column_width = (width + _GAP) / max(columns, (width + _GAP) // (_ENTRY_WIDTH + _GAP))
    picture = Image.new("RGB", (width, rows * _ENTRY_HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    for index, entry in enumerate(entries):
        column, row = divmod(index, rows)
        _draw_entry(draw, entry, column * column_width, row * _ENTRY_HEIGHT, column_width - _GAP)
    return picture


def below_one_another(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
    """Places pictures below one another on a white background, `gap` pixels apart, each at the left."""
    height = sum(picture.height for picture in pictures) + gap * (len(pictures) - 1)
    canvas = Image.new("RGB", (max(picture.width for picture in pictures), height), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height + gap
    return canvas


def percent(share: float) -> str:
    """A share of the pixels as text."""
    return "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def _draw_entry(draw: ImageDraw.ImageDraw, entry: LegendEntry, left: float, top: float, width: float) -> None:
    font = ImageFont.load_default(size=15)
    middle = top + _ENTRY_HEIGHT / 2
    swatch = (left, middle - _SWATCH / 2, left + _SWATCH, middle + _SWATCH / 2)
    draw.rectangle(swatch, entry.colour, outline=_TEXT)
    name_left = left + _SWATCH + _SHARE_WIDTH + 16
    draw.text((name_left - 8, middle), percent(entry.share), _TEXT, font, anchor="rm")
    draw.text((name_left, middle), shortened(entry.name, font, left + width - name_left), _TEXT, font, anchor="lm")


def _edges(classes: np.ndarray) -> np.ndarray:
    """Bool [H, W]: pixels whose right or lower neighbour has another class."""
    edges = np.zeros(classes.shape, dtype=bool)
    edges[:, :-1] |= classes[:, :-1] != classes[:, 1:]
    edges[:-1] |= classes[:-1] != classes[1:]
    return edges
