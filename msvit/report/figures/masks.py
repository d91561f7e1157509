"""The gate by position: mean and variance of its mask over images (figure 7a), and learned priors (7b)."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from torch import Tensor

from msvit.report.examined import Group
from msvit.report.style import new_figure, save

_COLUMNS = 6


@dataclass(frozen=True)
class _Row:
    """A map [Hc, Wc] for each setting, the largest value on the colour scale, and the label of the row."""

    maps: Sequence[Tensor]
    largest: float
    label: str


def draw_masks(groups: Sequence[Group], path: Path) -> Path:
    """Draws two maps for each setting, averaged over runs: share of images in which a region is fine, and variance."""
    upper, lower = [], []
    for group in groups:
        evaluations = [run.evaluation for run in group.runs]
        upper.append(torch.stack([one.position_mean for one in evaluations]).mean(0))
        lower.append(torch.stack([one.position_variance for one in evaluations]).mean(0))
    rows = (_Row(upper, 1.0, "share of images\nin which it is fine"), _Row(lower, 0.25, "variance\nover images"))
    return _draw([group.label for group in groups], rows, path)


def draw_priors(groups: Sequence[Group], path: Path) -> Path | None:
    """Draws the initial and the learned priors of the first run of each setting; None if no run has priors."""
    found = [(group.label, priors) for group in groups if (priors := group.runs[0].run.priors) is not None]
    if not found:
        return None
    largest = max(float(priors.max()) for _, priors in found)
    rows = (
        _Row([priors[0] for _, priors in found], largest, "initial prior"),
        _Row([priors[-1] for _, priors in found], largest, "learned prior"),
    )
    return _draw([label for label, _ in found], rows, path)


def _draw(labels: Sequence[str], rows: tuple[_Row, _Row], path: Path) -> Path:
    """Draws the two maps of a setting above each other, with at most `_COLUMNS` settings side by side."""
    columns = min(len(labels), _COLUMNS)
    figure, panels = new_figure(columns, 2 * -(-len(labels) // columns), width=2.9, height=2.7)
    for axes in panels:
        axes.set_axis_off()
    for which, row in enumerate(rows):
        used = []
        for i, values in enumerate(row.maps):
            block, column = divmod(i, columns)
            axes = panels[(2 * block + which) * columns + column]
            _heatmap(axes, values, row.largest)
            used.append(axes)
            if which == 0:
                axes.set_title(textwrap.fill(labels[i], 26), fontsize=8)
        figure.colorbar(used[0].images[0], ax=used, shrink=0.8, label=row.label)
    return save(figure, path)


def _heatmap(axes: Axes, values: Tensor, largest: float) -> None:
    axes.imshow(values.numpy(), vmin=0, vmax=largest, cmap="viridis")
    if values.numel() <= 64:
        for row in range(values.shape[0]):
            for column in range(values.shape[1]):
                value = float(values[row, column])
                colour = "white" if value < 0.6 * largest else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
