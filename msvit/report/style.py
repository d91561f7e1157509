"""The style that all figures share, and the function that saves them."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from msvit_kernels.files import replacing

# The palette of Okabe and Ito, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"
GREY = "#666666"


def new_figure(columns: int = 1, rows: int = 1, width: float = 4.6, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Makes a figure of panels, each `width` x `height` inches; returns it and its panels, row by row."""
    figure, panels = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows), squeeze=False, layout="constrained"
    )
    return figure, list(panels.flat)


def tidy(axes: Axes, title: str = "") -> None:
    """Sets a title and a light grid, and removes the frame at the top and on the right."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> Path:
    """Writes the PNG in one step, frees the figure and returns the path."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
    return path
