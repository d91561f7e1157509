"""Segmentation runs with all measurements that the report makes of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from msvit.evaluation.segmentation_pass import PixelScores
from msvit.models import Segmenter
from msvit.report.latency import measure_latency
from msvit.report.settings import group_runs
from msvit.training.batches import Share, first_images, first_of
from msvit.training.runs import Run
from msvit.training.tasks.segmentation import Segmentation


@dataclass(frozen=True)
class Examples:
    """The first test images, each cut to the square in its middle: a window, enlarged to full regions.

    Attributes:
        images: uint8 [n, 3, side, side].
        labels: uint8 [n, side, side], classes or 255.
        predictions: int64 [n, side, side], classes.
        fine_masks: bool [n, Hc, Wc].
        tokens: int64 [n], patch tokens.
    """

    images: Tensor
    labels: Tensor
    predictions: Tensor
    fine_masks: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class ExaminedSegmenter:
    """A run, its model on the device, and its measurements.

    Attributes:
        run: the run.
        model: its model, in evaluation mode.
        names: names of the classes.
        scores: scores on the test images, by sliding windows.
        examples: its first test images.
        latency_ms: milliseconds per window; NaN if it was not measured.
    """

    run: Run
    model: Segmenter
    names: Sequence[str]
    scores: PixelScores
    examples: Examples
    latency_ms: float

    @property
    def gmacs(self) -> float:
        """1e9 multiply-accumulates per window, with gate and decoder."""
        return self.scores.gmacs

    @property
    def score(self) -> float:
        """Mean IoU in percent."""
        return 100 * self.scores.mean_iou


@dataclass(frozen=True)
class SegmenterGroup:
    """Examined runs that differ only in their seed."""

    label: str
    runs: tuple[ExaminedSegmenter, ...]


def examine_segmenters(
    runs: Sequence[Run], device: torch.device, limit: int | None, examples: int, latency_seconds: float
) -> list[SegmenterGroup]:
    """Scores the runs' models on their test images, and times them.

    Args:
        runs: segmentation runs that have a checkpoint.
        device: device of the models.
        limit: number of test images of each run, starting with the first; None for all.
        examples: number of test images of each run to draw, starting with the first.
        latency_seconds: seconds spent on timing each model; with 0 the times are NaN.

    Returns:
        The runs by setting, in the order of the first runs.

    Raises:
        FileNotFoundError: a run has no checkpoint.
        ValueError: a checkpoint or the test images of a run cannot be read, or the runs have different classes.
    """
    examined = {str(run.folder): _examine(run, device, limit, max(1, examples)) for run in runs}
    if len({tuple(one.names) for one in examined.values()}) > 1:
        raise ValueError(f"{', '.join(examined)}: expected runs on the same classes, got different ones")
    if latency_seconds > 0:
        models = {name: one.model for name, one in examined.items()}
        images = {name: one.examples.images[: one.run.config.batch_size] for name, one in examined.items()}
        for name, time_ms in measure_latency(models, images, device, latency_seconds).items():
            examined[name] = replace(examined[name], latency_ms=time_ms)
    return [
        SegmenterGroup(setting.label, tuple(examined[str(run.folder)] for run in setting.runs))
        for setting in group_runs(runs)
    ]


def _examine(run: Run, device: torch.device, limit: int | None, examples: int) -> ExaminedSegmenter:
    model: Segmenter = run.model().to(device)
    task = Segmentation(run.config)
    dataset = run.test_dataset()
    scores = task.measure(model, first_of(dataset, limit), Share())
    region = model.encoder.region_width
    side = math.ceil(task.window(model) / region) * region
    found = first_images(task.centred(dataset, side), examples, run.config.num_workers)
    segmented = _segmented(model, found.images, found.labels, device)
    return ExaminedSegmenter(run, model, dataset.class_names, scores, segmented, math.nan)


@torch.inference_mode()
def _segmented(model: Segmenter, images: Tensor, labels: Tensor, device: torch.device) -> Examples:
    pixels = images.to(device)
    decision = model.encoder.decide(pixels)
    predictions = model.enlarged(model.segment(pixels, decision), (images.shape[2], images.shape[3])).argmax(1)
    return Examples(images, labels, predictions.cpu(), decision.fine_mask.cpu(), decision.num_patches().cpu())
