"""Token maps of the first test images, and the distribution of tokens over all images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from msvit.report.examined import Examined, Group
from msvit.report.style import COLOURS, new_figure, save, tidy
from msvit.visualize import draw_tokens

_COLUMNS = 6


def draw_token_maps(examined: Examined, path: Path, count: int = 12) -> Path:
    """Draws the fine and coarse regions of the first `count` test images; a frame marks the object."""
    count = min(count, len(examined.test.images))
    columns = min(count, _COLUMNS)
    figure, panels = new_figure(columns, -(-count // columns), width=2.0, height=2.15)
    for axes in panels:
        axes.set_axis_off()
    evaluation, scale_factor = examined.evaluation, examined.model.scale_factor
    width = 16 * scale_factor * evaluation.masks.shape[2]
    for i, axes in enumerate(panels[:count]):
        picture = draw_tokens(
            examined.test.images[i], evaluation.masks[i], scale_factor=scale_factor, width=max(224, width)
        )
        axes.imshow(np.asarray(picture))
        if examined.test.boxes is not None:
            _frame(axes, examined.test.boxes[i].tolist(), picture.width / examined.test.images.shape[3])
        verdict = "correct" if evaluation.correct[i] else "wrong"
        axes.set_title(f"{int(evaluation.tokens[i])} tokens, {verdict}", fontsize=8)
    return save(figure, path)


def draw_histogram(groups: Sequence[Group], path: Path) -> Path:
    """Draws the share of test images by number of tokens, over all runs of a setting."""
    figure, (axes,) = new_figure(width=6.5, height=3.6)
    for i, group in enumerate(groups):
        tokens = np.concatenate([run.evaluation.tokens.numpy() for run in group.runs])
        values, counts = np.unique(tokens, return_counts=True)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(values, 100 * counts / len(tokens), color=colour, marker=".", lw=1.2, label=group.label)
        axes.axvline(tokens.mean(), color=colour, lw=0.8, ls=":")
    axes.set_xlabel("tokens per image (dotted line: mean)")
    axes.set_ylabel("share of images, %")
    axes.set_ylim(bottom=0)
    tidy(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return save(figure, path)


def _frame(axes: Axes, box: Sequence[int], scale: float) -> None:
    left, top, right, bottom = (scale * edge for edge in box)
    axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="#00FF66", lw=1.2)
