"""The share of fine regions on the object, compared with chance."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from msvit.report.examined import Group
from msvit.report.settings import mean_and_spread
from msvit.report.style import COLOURS, GREY, new_figure, save, tidy


def draw_coverage(groups: Sequence[Group], path: Path) -> Path:
    """Draws two bars for each setting: fine regions that are on the object, and object regions that are fine, in %.

    The tick across a bar is the expected value for fine regions placed at random.
    """
    figure, panels = new_figure(2, width=5.6, height=1.4 + 0.35 * len(groups))
    names = ("on_object", "found")
    titles = ("share of the fine regions that cover the object, %", "share of the object's regions that are fine, %")
    for axes, name, title in zip(panels, names, titles, strict=True):
        for i, group in enumerate(groups):
            covers = [run.coverage for run in group.runs if run.coverage is not None]
            mean, spread = mean_and_spread([100 * getattr(cover, name) for cover in covers])
            if name == "on_object":
                chance = mean_and_spread([100 * cover.chance for cover in covers])[0]
            else:
                chance = mean_and_spread([100 * run.evaluation.fine_share for run in group.runs])[0]
            axes.barh(i, mean, xerr=spread or None, color=COLOURS[i % len(COLOURS)], height=0.6, capsize=2)
            axes.plot([chance, chance], [i - 0.4, i + 0.4], color="black", lw=2)
        labels = [textwrap.fill(group.label, 30) for group in groups] if name == names[0] else [""] * len(groups)
        axes.set_yticks(range(len(groups)), labels, fontsize=8)
        axes.invert_yaxis()
        tidy(axes, title)
    figure.supxlabel("black tick: fine regions placed at random", fontsize=8, color=GREY)
    return save(figure, path)
