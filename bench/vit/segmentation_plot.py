"""The picture that bench/segmentation.py draws."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.vit.plot import finish_axes, write_png  # it chooses the backend that needs no display

# Colours as in `plot.STYLES`.
STYLES = {
    "dense": ("#0072B2", "o"),
    "masked": ("#999999", "s"),
    "packed grid": ("#E69F00", "^"),
    "packed": ("#D55E00", "D"),
}


def plot_segmentation(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Time per image against tokens, masks at grid resolution, one panel for each model and batch size.

    Args:
        rows: rows as `segmentation_rows.make_rows` makes them, with the columns of the machine.
        path: PNG file to write.
    """
    rows = [row for row in rows if row["masks"] == "grid"]
    groups = list(dict.fromkeys((row["model"], row["batch"]) for row in rows))
    figure, panels = plt.subplots(
        1, len(groups), figsize=(1.5 + 3.6 * len(groups), 4.4), squeeze=False, layout="constrained"
    )
    for axes, group in zip(panels[0], groups, strict=True):
        _panel(axes, [row for row in rows if (row["model"], row["batch"]) == group])
        axes.set_title(f"{group[0]}, batch {group[1]}", loc="left", fontsize=11)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, 2 * len(groups)), frameon=False, fontsize=9)
    first = rows[0]
    figure.suptitle(f"Segmenter on {first['machine']}, {first['dtype']}: p50, with p20 to p80", fontsize=10.5)
    write_png(figure, path)


def _panel(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    for method, (colour, marker) in STYLES.items():
        mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["tokens"])
        if not mine:
            continue
        errors = [
            [row["p50_ms"] - row["p20_ms"] for row in mine],
            [row["p80_ms"] - row["p50_ms"] for row in mine],
        ]
        tokens, middle = [row["tokens"] for row in mine], [row["p50_ms"] for row in mine]
        axes.errorbar(tokens, middle, errors, color=colour, marker=marker, ms=5, lw=1.6, capsize=2, label=method)
    _proportional(axes, rows)
    finish_axes(axes)


def _proportional(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """The dense time in proportion to the GMACs of packed encoder and decoder."""
    dense = next((row for row in rows if row["method"] == "dense"), None)
    if dense is None:
        return
    points = [
        (row["tokens"], row["gmacs"] * dense["p50_ms"] / dense["gmacs"]) for row in rows if row["method"] == "packed"
    ]
    points = sorted([*points, (dense["tokens"], dense["p50_ms"])])
    axes.plot(*zip(*points, strict=True), color="black", lw=1, ls="--", label="dense, proportional to GMACs")
