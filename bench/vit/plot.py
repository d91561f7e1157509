"""The picture that bench/latency.py draws."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from msvit_kernels.files import replacing

# Okabe and Ito's colours, which colour-blind readers can distinguish, and a dark red. A compiled model is drawn once,
# as a graph if there is one.
STYLES = {
    "masked": ("MSViT-S masked", "#999999", "s"),
    "trimmed": ("MSViT-S trimmed", "#E69F00", "^"),
    "dense": ("ViT-S dense", "#0072B2", "o"),
    "packed": ("MSViT-S packed", "#D55E00", "D"),
    "dense compiled": ("ViT-S compiled", "#009E73", "*"),
    "packed compiled": ("MSViT-S packed, compiled", "#882255", "P"),
    "dense graph": ("ViT-S dense, CUDA graph", "#56B4E9", "o"),
    "dense compiled graph": ("ViT-S compiled, CUDA graph", "#009E73", "*"),
    "packed graph": ("MSViT-S packed, CUDA graph", "#CC79A7", "D"),
    "packed compiled graph": ("MSViT-S packed, compiled, CUDA graph", "#882255", "P"),
}


def plot_latency(rows: list[dict[str, Any]], path: Path) -> None:
    """Time per image against tokens, one panel for each batch size, with the line of cost proportional to MACs.

    Args:
        rows: rows as `latency_rows.make_rows` makes them.
        path: PNG file to write.
    """
    batches = sorted({row["batch"] for row in rows})
    figure, panels = plt.subplots(
        1, len(batches), figsize=(5.8 * len(batches), 4.8), squeeze=False, layout="constrained"
    )
    for axes, batch in zip(panels[0], batches, strict=True):
        _panel(axes, [row for row in rows if row["batch"] == batch])
        axes.set_title(f"batch {batch}", loc="left", fontsize=11)
    handles, labels = panels[0][0].get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: not labels[i].startswith(("MSViT", "ViT")))
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside lower center",
        ncols=3 * len(batches),
        frameon=False,
        fontsize=9,
    )
    first = rows[0]
    figure.suptitle(
        f"ViT-S on {first['machine']}, {_threads(first)}{first['dtype']}: p50 of the latency, with p20 to p80",
        fontsize=10.5,
        x=0.01,
        ha="left",
    )
    write_png(figure, path)


def write_png(figure: Figure, path: Path) -> None:
    """Writes a PNG in one step, into a folder that is made if it does not exist, and frees the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=130)
    plt.close(figure)


def finish_axes(axes: Axes) -> None:
    """Sets the labels and the light grid of a panel of time against tokens."""
    axes.set_xlabel("tokens per image")
    axes.set_ylabel("milliseconds per image")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _threads(row: dict[str, Any]) -> str:
    return f"{row['threads']} threads, " if row["isa"] != "none" else ""


def _panel(axes: Axes, rows: list[dict[str, Any]]) -> None:
    names = {row["method"] for row in rows}
    for method, (label, colour, marker) in STYLES.items():
        if method.endswith("compiled") and f"{method} graph" in names:
            continue
        mine = sorted((row for row in rows if row["method"] == method), key=lambda row: row["tokens"])
        # Two image sizes are two models: their points are not joined.
        sizes = {None if method.startswith("dense") else row["image_size"] for row in mine}
        for size in sorted(sizes, key=lambda s: s or 0):
            part = [row for row in mine if size is None or row["image_size"] == size]
            middle = [row["all_p50_ms"] for row in part]
            errors = [
                [max(row["all_p50_ms"] - row["all_p20_ms"], 0) for row in part],
                [max(row["all_p80_ms"] - row["all_p50_ms"], 0) for row in part],
            ]
            tokens = [row["tokens"] for row in part]
            axes.errorbar(tokens, middle, errors, color=colour, marker=marker, ms=5, lw=1.6, capsize=2, label=label)
            label = "_"  # once in the legend
            if method in ("dense", "packed") and all(row["transformer_p50_ms"] is not None for row in part):
                blocks = [row["transformer_p50_ms"] for row in part]
                axes.plot(tokens, blocks, color=colour, lw=1, ls=":")
    _proportional(axes, rows)
    axes.plot([], [], color="black", lw=1, ls=":", label="transformer only")
    finish_axes(axes)


def _proportional(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """A line through the dense model with the most tokens: the time of other token counts at the same GMACs/s."""
    dense = sorted((row for row in rows if row["method"] == "dense"), key=lambda row: row["tokens"])
    if len(dense) < 2:
        return
    scale = dense[-1]["all_p50_ms"] / dense[-1]["gmacs"]
    points = [(0.0, 0.0), *((row["tokens"], row["gmacs"] * scale) for row in dense)]
    axes.plot(*zip(*points, strict=True), color="black", lw=1, ls="--", label="proportional to GMACs")
