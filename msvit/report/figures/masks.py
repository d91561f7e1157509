"""What the gate does by position: mean and variance of its mask over images (figure 7a), and learned priors (7b)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from msvit.report.examined import Group
from msvit.report.style import new_figure, save


def draw_masks(groups: Sequence[Group], path: Path) -> Path:
    """A column for each setting, means over its runs: how often each region is fine, and its variance over images."""
    figure, panels = new_figure(len(groups), 2, width=2.9, height=2.7)
    top, bottom = panels[: len(groups)], panels[len(groups) :]
    for axes, below, group in zip(top, bottom, groups, strict=True):
        evaluations = [run.evaluation for run in group.runs]
        _heatmap(axes, torch.stack([one.position_mean for one in evaluations]).mean(0), 1.0)
        _heatmap(below, torch.stack([one.position_variance for one in evaluations]).mean(0), 0.25)
        axes.set_title(_wrapped(group.label), fontsize=8)
    _colour_bar(figure, top, "share of images\nwhere fine")
    _colour_bar(figure, bottom, "variance\nover images")
    return save(figure, path)


def draw_priors(groups: Sequence[Group], path: Path) -> Path | None:
    """The priors as initialised and as learned, of the first run of each setting that has them; None where none has."""
    found = [(group, priors) for group in groups if (priors := group.runs[0].run.priors) is not None]
    if not found:
        return None
    largest = max(float(priors.max()) for _, priors in found)
    figure, panels = new_figure(len(found), 2, width=2.9, height=2.7)
    for i, (group, priors) in enumerate(found):
        _heatmap(panels[i], priors[0], largest)
        _heatmap(panels[len(found) + i], priors[-1], largest)
        panels[i].set_title(_wrapped(group.label), fontsize=8)
    _colour_bar(figure, panels[: len(found)], "prior at the start")
    _colour_bar(figure, panels[len(found) :], "learned prior")
    return save(figure, path)


def _heatmap(axes: Axes, values: Tensor, largest: float) -> None:
    axes.imshow(values.numpy(), vmin=0, vmax=largest, cmap="viridis")
    axes.set_xticks([])
    axes.set_yticks([])
    if values.numel() <= 64:
        for row in range(values.shape[0]):
            for column in range(values.shape[1]):
                value = float(values[row, column])
                colour = "white" if value < 0.6 * largest else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)


def _colour_bar(figure: Any, panels: Sequence[Axes], label: str) -> None:
    figure.colorbar(panels[0].images[0], ax=list(panels), shrink=0.8, label=label)


def _wrapped(label: str) -> str:
    return label.replace(", ", ",\n")
