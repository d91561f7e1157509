"""`msvit report` for segmentation runs: accuracy against cost, the classes in coarse regions, and examples."""

from collections.abc import Sequence
from pathlib import Path

import torch

from msvit.report.figures.history import draw_history
from msvit.report.figures.tradeoff import draw_tradeoff
from msvit.report.page import Section
from msvit.report.segmentation.examined import SegmenterGroup
from msvit.report.segmentation.figures import draw_class_shares, draw_examples
from msvit.report.tables import Column, result_tables, write_runs
from msvit_kernels.files import write_rows

_SCORE = "mean IoU, %"
_COLUMNS = (
    Column(_SCORE, 2, lambda run: run.score),
    Column("pixel accuracy, %", 2, lambda run: 100 * run.scores.accuracy),
    Column("tokens per window", 1, lambda run: run.scores.tokens_per_window),
    Column("GMACs", 4, lambda run: run.gmacs),
    Column("ms per window", 3, lambda run: run.latency_ms),
    Column("fine regions, %", 1, lambda run: 100 * run.scores.fine_share),
)
_HISTORY = (
    ("train_loss", "training loss", 1),
    ("miou", _SCORE, 100),
    ("tokens_per_image", "tokens per test window", 1),
)


def segmentation_sections(groups: Sequence[SegmenterGroup], output: Path, device: torch.device) -> list[Section]:
    """Writes runs.csv, classes.csv and the pictures of segmentation runs.

    Args:
        groups: examined runs by setting, all with the same classes.
        output: folder of the report.
        device: device of the models.

    Returns:
        The sections of the page.
    """
    write_runs(groups, output / "runs.csv", _COLUMNS)
    write_rows(output / "classes.csv", ["setting", "run", "class", "iou", "accuracy", "coarse_share"], _classes(groups))
    return [
        _summary(groups, device),
        _tradeoff(groups, output, device),
        _history(groups, output),
        _class_shares(groups, output),
        *(_examples(group, i, output) for i, group in enumerate(groups)),
    ]


def _summary(groups: Sequence[SegmenterGroup], device: torch.device) -> Section:
    first = groups[0].runs[0]
    text = (
        f"{first.scores.images} test images of {first.run.config.data!r}, {len(first.names)} classes. Mean IoU is the "
        "mean over the classes of the intersection over union of all pixels of the test set. Tokens, GMACs (gate and "
        f"decoder included) and times are per window of {first.examples.images.shape[3]} pixels; times, from pixels to "
        f"logits of pixels, are medians over batches of {len(first.examples.images)} windows on {device}. "
        "classes.csv has the scores of each class."
    )
    tables = result_tables(groups, _COLUMNS)
    if len(tables) > 1:
        text += " A setting has the mean ± standard deviation of runs that differ only in their seed."
    return Section("Summary", text, tables)


def _tradeoff(groups: Sequence[SegmenterGroup], output: Path, device: torch.device) -> Section:
    picture = draw_tradeoff(groups, output / "tradeoff.png", str(device), _SCORE, "window")
    return Section("Accuracy against cost", "Large markers are means over the runs of a setting.", pictures=[picture])


def _history(groups: Sequence[SegmenterGroup], output: Path) -> Section:
    if not any(run.run.metrics for group in groups for run in group.runs):
        return Section("Training", "Left out: no run has finished an epoch.")
    text = "Loss, mean IoU and tokens by epoch, from metrics.csv."
    return Section("Training", text, pictures=[draw_history(groups, output / "history.png", _HISTORY)])


def _class_shares(groups: Sequence[SegmenterGroup], output: Path) -> Section:
    title = "Classes in coarse regions"
    picture = draw_class_shares(groups, output / "classes.png")
    if picture is None:
        return Section(title, "Left out: no run has both coarse and fine regions.")
    text = "Share of the test pixels of each class that lie in coarse regions, as in figure 4c of the paper."
    return Section(title, text, pictures=[picture])


def _examples(group: SegmenterGroup, index: int, output: Path) -> Section:
    run = group.runs[0]
    text = (
        f"The first {len(run.examples.images)} test images of {run.run.name}, without selection, cut to one window. "
        "Pixels without a class are grey."
    )
    return Section(f"Examples: {group.label}", text, pictures=[draw_examples(run, output / f"examples-{index}.png")])


def _classes(groups: Sequence[SegmenterGroup]) -> list[dict[str, object]]:
    """A row for each class of each run."""
    rows: list[dict[str, object]] = []
    for group in groups:
        for run in group.runs:
            found = run.scores
            columns = zip(run.names, found.iou, found.class_accuracy, found.coarse_shares, strict=True)
            rows += [
                {"setting": group.label, "run": run.run.name}
                | {"class": name, "iou": iou, "accuracy": accuracy, "coarse_share": share}
                for name, iou, accuracy, share in columns
            ]
    return rows
