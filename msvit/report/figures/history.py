"""Loss, accuracy and tokens by epoch."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import MaxNLocator

from msvit.report.style import COLOURS, new_figure, save, tidy
from msvit.report.tables import GroupLike

# Column of metrics.csv, label and factor of each panel.
PANELS = (
    ("train_loss", "training loss", 1),
    ("top1", "top-1 accuracy on test images, %", 100),
    ("tokens_per_image", "tokens per test image", 1),
)


def draw_history(groups: Sequence[GroupLike], path: Path, shown: Sequence[tuple[str, str, float]] = PANELS) -> Path:
    """Draws one line for each run, coloured by setting, from its metrics.csv, in a panel for each entry of `shown`."""
    figure, panels = new_figure(len(shown), width=4.2, height=3.6)
    for axes, (column, label, factor) in zip(panels, shown, strict=True):
        for i, group in enumerate(groups):
            for j, run in enumerate(group.runs):
                rows = run.run.metrics
                values = [factor * row[column] for row in rows]
                label_once = group.label if j == 0 else "_"
                axes.plot(
                    [row["epoch"] for row in rows],
                    values,
                    color=COLOURS[i % len(COLOURS)],
                    marker=".",
                    label=label_once,
                )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
        tidy(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return save(figure, path)
