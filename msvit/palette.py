"""One colour for each class of a segmentation, the same in every picture."""

import functools

import numpy as np

# Linear sRGB to the cone responses of Oklab, and their cube roots to Oklab (Ottosson 2020).
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# How people without green or red cones see linear sRGB (Machado et al. 2009, severity 1).
_WITHOUT_GREEN = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
_WITHOUT_RED = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
# Oklab lightness and chroma of the colours: neither near black or white nor grey, as photographs are.
_LIGHTNESS = (0.40, 0.88)
_LEAST_CHROMA = 0.07
_LEVELS = np.arange(0, 256, 15)
# The palette of Okabe and Ito (2008) without black, which most people with a colour deficiency can tell apart.
_FIRST = ((86, 180, 233), (213, 94, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (0, 114, 178), (230, 159, 0))


@functools.cache
def class_colours(num_classes: int) -> np.ndarray:
    """Chooses colours that differ as much as possible, also for people without green or red cones.

    The first seven are those of Okabe and Ito. Each further one is the farthest from all before it: the smallest mean
    of two distances is the largest. One is the distance in Oklab, the other the smaller one of those seen without
    green or red cones. Therefore the first colours differ most, and more classes do not change them.

    Args:
        num_classes: number of colours.

    Returns:
        uint8 [num_classes, 3], sRGB.

    Raises:
        ValueError: there are not as many colours; there are about 4,000.
    """
    grid = np.stack(np.meshgrid(_LEVELS, _LEVELS, _LEVELS, indexing="ij"), axis=-1).reshape(-1, 3)
    lightness, *axes = _oklab(_linear(grid)).T
    kept = (_LIGHTNESS[0] <= lightness) & (lightness <= _LIGHTNESS[1]) & (np.hypot(*axes) >= _LEAST_CHROMA)
    colours = np.concatenate([_FIRST, grid[kept]])
    if num_classes > len(colours):
        raise ValueError(f"num_classes: expected at most {len(colours)}, got {num_classes}")
    seen = _seen(colours)
    chosen: list[int] = []
    nearest = np.full(len(colours), np.inf)
    for index in range(num_classes):
        chosen.append(index if index < len(_FIRST) else int(nearest.argmax()))
        with_cones, *without = np.linalg.norm(seen - seen[:, chosen[-1:]], axis=2)
        nearest = np.minimum(nearest, (with_cones + np.minimum(*without)) / 2)
    return colours[chosen].astype(np.uint8)


def _seen(colours: np.ndarray) -> np.ndarray:
    """Oklab of sRGB colours [n, 3] in each kind of vision: [3, n, 3]."""
    linear = _linear(colours)
    return np.stack([_oklab((linear @ vision.T).clip(0, 1)) for vision in (np.eye(3), _WITHOUT_GREEN, _WITHOUT_RED)])


def _linear(colours: np.ndarray) -> np.ndarray:
    """sRGB in [0, 255] without its gamma, in [0, 1]."""
    values = colours / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _oklab(linear: np.ndarray) -> np.ndarray:
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_OKLAB.T
