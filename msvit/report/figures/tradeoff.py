"""Accuracy against cost: GMACs and measured milliseconds, one point for each run."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from msvit.report.settings import mean_and_spread
from msvit.report.style import COLOURS, MARKERS, new_figure, save, tidy
from msvit.report.tables import GroupLike


def draw_tradeoff(
    groups: Sequence[GroupLike], path: Path, device: str, score: str = "top-1 accuracy, %", unit: str = "image"
) -> Path:
    """Draws the runs' scores against GMACs and against time; a large marker is the mean of a setting's runs.

    Error bars are one standard deviation.

    Args:
        groups: settings with their runs.
        path: PNG to write.
        device: name of the device on which the latency was measured, for the axis label.
        score: name of the score, for the axis label.
        unit: input of a forward pass, for the axis labels.

    Returns:
        The path.
    """
    figure, (by_macs, by_time) = new_figure(2, width=5.0, height=3.9)
    for i, group in enumerate(groups):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i // len(COLOURS) % len(MARKERS)]
        _points(by_macs, group, [run.gmacs for run in group.runs], colour, marker)
        _points(by_time, group, [run.latency_ms for run in group.runs], colour, marker)
    by_macs.set_xlabel(f"GMACs per {unit}")
    by_time.set_xlabel(f"milliseconds per {unit}, packed ({device})")
    for axes in (by_macs, by_time):
        axes.set_ylabel(score)
        axes.set_xlim(left=0)
        tidy(axes)
    figure.legend(*by_macs.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return save(figure, path)


def _points(axes: Axes, group: GroupLike, costs: Sequence[float], colour: str, marker: str) -> None:
    scores = [run.score for run in group.runs]
    (x, x_spread), (y, y_spread) = mean_and_spread(costs), mean_and_spread(scores)
    axes.errorbar(
        x, y, y_spread or None, x_spread or None, color=colour, marker=marker, ls="", capsize=2, label=group.label
    )
    if len(costs) > 1:
        axes.plot(costs, scores, color=colour, marker=marker, ls="", ms=3, alpha=0.4)
