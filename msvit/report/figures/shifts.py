"""The gain of the learned gate over a fixed pattern under random zooms and shifts (figures 8 and 14)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from msvit.report.examined import Examined
from msvit.report.shifts import Comparison, apply
from msvit.report.style import new_figure, save, tidy
from msvit.visualize import draw_tokens

_SHOWN = 6


def draw_shifts(comparisons: Sequence[Comparison], path: Path, title: str) -> Path:
    """Draws a point for each transform: gain (colour) and cost (area) by shift and zoom, and gain by tokens."""
    figure, (axes, tokens) = new_figure(2, width=5.2, height=4.0)
    distance = [float(np.hypot(pair.transform.shift_x, pair.transform.shift_y)) for pair in comparisons]
    gain = [100 * (pair.learned.top1 - pair.radial.top1) for pair in comparisons]
    cost = [pair.learned.gmacs / pair.radial.gmacs for pair in comparisons]
    limit = max(1.0, *map(abs, gain))
    zooms = [pair.transform.zoom for pair in comparisons]
    points = axes.scatter(
        distance, zooms, s=[140 * c**2 for c in cost], c=gain, cmap="RdBu", vmin=-limit, vmax=limit, edgecolors="black"
    )
    figure.colorbar(points, ax=axes, label="accuracy gain of learned over radial, percentage points")
    axes.set_xlabel("shift, image widths")
    axes.set_ylabel("zoom")
    tidy(axes, "marker area: squared ratio of GMACs, learned to radial")
    tokens.plot(
        [pair.learned.tokens_per_image for pair in comparisons],
        gain,
        "o",
        color="#0072B2",
        label="one zoom and shift",
    )
    tokens.axvline(comparisons[0].radial.tokens_per_image, color="black", lw=1, ls="--", label="radial gate")
    tokens.axhline(0, color="#999999", lw=1)
    tokens.set_xlabel("tokens per image of the learned gate")
    tokens.set_ylabel("accuracy gain, percentage points")
    tidy(tokens)
    tokens.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


def draw_shifted_maps(examined: Examined, comparisons: Sequence[Comparison], path: Path) -> Path:
    """Draws the first test image under the first transforms, with the learned gate's regions."""
    shown = comparisons[:_SHOWN]
    figure, panels = new_figure(len(shown), width=2.0, height=2.3)
    for axes, pair in zip(panels, shown, strict=True):
        moved = apply(examined.test.images[:1], pair.transform)[0]
        mask = pair.learned.masks[0]
        scale_factor = examined.model.scale_factor
        width = max(224, 16 * scale_factor * mask.shape[1])
        picture = draw_tokens(moved, mask, scale_factor=scale_factor, width=width)
        axes.imshow(np.asarray(picture))
        axes.set_axis_off()
        one = pair.transform
        axes.set_title(f"zoom {one.zoom:.2f},\nshift {one.shift_x:+.2f} {one.shift_y:+.2f}", fontsize=8)
    return save(figure, path)
