"""Handwritten digits as ink: the scans, enlarged and turned, and their blending into images."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from msvit.extras import require_extra

# Largest turn of a digit, in radians, and range of its brightness, in 1/255.
MAX_TURN = math.radians(12)
INK = (220, 255)

_MIN_ALPHA = 1 / 32


def digit_scans(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Loads the handwritten digits of a split; a quarter of each digit's scans are for testing.

    Args:
        split: "train" or "test".

    Returns:
        Scans, fp32 [n, 8, 8] in [0, 1], and their labels, int64 [n].

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    require_extra("train", "sklearn")
    from sklearn.datasets import load_digits

    data = load_digits()
    for_test = np.zeros(len(data.target), dtype=bool)
    for digit in range(10):
        for_test[np.flatnonzero(data.target == digit)[::4]] = True
    mine = for_test == (split == "test")
    return (data.images[mine] / 16).astype(np.float32), data.target[mine].astype(np.int64)


def balanced(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `size` scans, with equally many of each digit to within one."""
    wanted = rng.permutation(np.arange(size) % 10)
    chosen = np.empty(size, dtype=np.int64)
    for digit in range(10):
        mine = wanted == digit
        chosen[mine] = rng.choice(np.flatnonzero(labels == digit), mine.sum())
    return chosen


def enlarge(scans: np.ndarray, sides: np.ndarray, turns: np.ndarray) -> Tensor:
    """Enlarges scans, fp32 [n, channels, h, w], to `sides` pixels and turns them by `turns` radians.

    The result is fp32 [n, channels, c, c], with c wide enough for all of them.
    """
    canvas = math.ceil(sides.max() * (math.cos(MAX_TURN) + math.sin(MAX_TURN))) + 1
    # Maps a position on the canvas to one in the scan, both in [-1, 1].
    scale = canvas / sides
    cos, sin, zero = np.cos(turns) * scale, np.sin(turns) * scale, np.zeros(len(scans))
    theta = torch.from_numpy(np.stack([cos, -sin, zero, sin, cos, zero], axis=1).astype(np.float32)).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(scans), 1, canvas, canvas], align_corners=False)
    ink = F.grid_sample(torch.from_numpy(scans), grid, mode="bicubic", align_corners=False)
    return torch.where(ink > _MIN_ALPHA, ink.clamp(0, 1), 0)


def extent(ink: Tensor, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """First column (axis 0) or row (axis 1) with ink, and the one after the last, of each [c, c] in `ink`."""
    has_ink = (ink > 0).any(1 + axis).numpy()
    return has_ink.argmax(1), has_ink.shape[1] - has_ink[:, ::-1].argmax(1)


def blend(patch: np.ndarray, alpha: np.ndarray, level: float) -> None:
    """Paints ink of one brightness and opacity `alpha` [h, w] on uint8 [3, h, w], in place."""
    patch[...] = (patch + alpha * (level - patch)).round()
