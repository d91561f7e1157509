"""Figures of segmentation runs: classes in coarse regions (figure 4c), and examples (figures 12 and 13)."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from msvit.report.segmentation.examined import ExaminedSegmenter, SegmenterGroup
from msvit.report.settings import mean_and_spread
from msvit.report.style import COLOURS, new_figure, save, tidy
from msvit.segmentation_picture import draw_segmentation
from msvit.visualize import draw_tokens

# Classes at each end of figure 4c; a set with up to twice as many is drawn whole.
_AT_EACH_END = 12


def draw_class_shares(groups: Sequence[SegmenterGroup], path: Path) -> Path | None:
    """Draws the share of each class's pixels that lie in coarse regions, most often coarse first.

    Args:
        groups: settings with their runs, all on the same classes. The first setting orders the classes; an error bar is
            one standard deviation over runs.
        path: PNG to write.

    Returns:
        The path; None if no setting has both fine and coarse regions.
    """
    mixed = [group for group in groups if any(0 < run.scores.fine_share < 1 for run in group.runs)]
    if not mixed:
        return None
    names = mixed[0].runs[0].names
    order = sorted((-share, i) for i, share in enumerate(_shares(mixed[0])) if not math.isnan(share))
    chosen = [i for _, i in order]
    if len(chosen) > 2 * _AT_EACH_END:
        chosen = chosen[:_AT_EACH_END] + chosen[-_AT_EACH_END:]
    figure, (axes,) = new_figure(width=8.0, height=0.9 + 0.24 * len(chosen) * max(1, len(mixed) / 3))
    places, height = np.arange(len(chosen)), 0.8 / len(mixed)
    for i, group in enumerate(mixed):
        found = [mean_and_spread([100 * run.scores.coarse_shares[c] for run in group.runs]) for c in chosen]
        means, spreads = zip(*found, strict=True)
        errors = spreads if len(group.runs) > 1 else None
        axes.barh(places + i * height, means, height, xerr=errors, color=COLOURS[i % len(COLOURS)], label=group.label)
    axes.set_yticks(places + 0.4 - height / 2, [_short(names[c]) for c in chosen], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the class's pixels in coarse regions, %")
    tidy(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return save(figure, path)


def draw_examples(run: ExaminedSegmenter, path: Path) -> Path:
    """Draws the first test images in rows: tokens, prediction and label."""
    examples = run.examples
    count = len(examples.images)
    figure, panels = new_figure(3 * (1 + (count > 1)), -(-count // 2), width=2.2, height=2.35)
    for axes in panels:
        axes.set_axis_off()
    for i in range(count):
        image, label = examples.images[i], examples.labels[i]
        tokens = draw_tokens(
            image, examples.fine_masks[i], scale_factor=run.model.encoder.scale_factor, width=_width(run)
        )
        titles = (f"{int(examples.tokens[i])} tokens", "prediction", "label")
        pictures = (tokens, _blended(run, image, examples.predictions[i], tokens), _blended(run, image, label, tokens))
        for axes, picture, title in zip(panels[3 * i : 3 * i + 3], pictures, titles, strict=True):
            axes.imshow(np.asarray(picture))
            axes.set_title(title, fontsize=8)
    return save(figure, path)


def _width(run: ExaminedSegmenter) -> int:
    return max(224, 8 * run.model.encoder.scale_factor * run.examples.fine_masks.shape[2])


def _blended(run: ExaminedSegmenter, image: Tensor, classes: Tensor, like: Image.Image) -> Image.Image:
    return draw_segmentation(image, classes, len(run.names), like.size)


def _shares(group: SegmenterGroup) -> list[float]:
    return [float(np.mean(shares)) for shares in zip(*(run.scores.coarse_shares for run in group.runs), strict=True)]


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"
