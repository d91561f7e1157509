"""Runs with all measurements that the report makes of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from msvit.evaluation.by_image import Evaluation, TestImages, evaluate
from msvit.models import MixedScaleVisionTransformer
from msvit.report.coverage import Coverage, measure_coverage
from msvit.report.images import load_test_images
from msvit.report.latency import measure_latency
from msvit.report.settings import group_runs
from msvit.training.runs import Run


@dataclass(frozen=True)
class Examined:
    """A run, its model on the device, and its measurements.

    Attributes:
        run: the run.
        model: its model, in evaluation mode.
        test: its test images, on the CPU.
        evaluation: results of the model for these images.
        coverage: coverage of the objects by fine regions; None if the data set does not give their places.
        latency_ms: milliseconds per image, packed; NaN if it was not measured.
    """

    run: Run
    model: MixedScaleVisionTransformer
    test: TestImages
    evaluation: Evaluation
    coverage: Coverage | None
    latency_ms: float

    @property
    def gmacs(self) -> float:
        """1e9 multiply-accumulates per image, gate included."""
        return self.evaluation.gmacs

    @property
    def score(self) -> float:
        """Top-1 accuracy in percent."""
        return 100 * self.evaluation.top1


@dataclass(frozen=True)
class Group:
    """Examined runs that differ only in their seed."""

    label: str
    runs: tuple[Examined, ...]

    @property
    def learned(self) -> bool:
        """Whether the gate is learned."""
        return self.runs[0].run.config.gate == "learned"


def examine(
    runs: Sequence[Run], device: torch.device, limit: int | None = None, latency_seconds: float = 2.0
) -> list[Group]:
    """Evaluates the runs' models on their test images, and times them.

    Args:
        runs: runs that have a checkpoint.
        device: device of the models.
        limit: number of test images of each run, starting with the first; None for all.
        latency_seconds: seconds spent on timing each model; with 0 the times are NaN.

    Returns:
        The runs by setting, in the order of the first runs.

    Raises:
        FileNotFoundError: a run has no checkpoint.
        ValueError: a checkpoint or the test images of a run cannot be read.
    """
    examined: dict[str, Examined] = {}
    for run in runs:
        model = run.model().to(device)
        test = load_test_images(run, limit)
        evaluation = evaluate(model, test, run.config.batch_size)
        coverage = None if test.boxes is None else measure_coverage(evaluation.masks, test.boxes, model.coarse)
        examined[str(run.folder)] = Examined(run, model, test, evaluation, coverage, math.nan)
    if latency_seconds > 0:
        models = {name: one.model for name, one in examined.items()}
        images = {name: one.test.images[: one.run.config.batch_size] for name, one in examined.items()}
        for name, time_ms in measure_latency(models, images, device, latency_seconds).items():
            one = examined[name]
            examined[name] = Examined(one.run, one.model, one.test, one.evaluation, one.coverage, time_ms)
    return [
        Group(setting.label, tuple(examined[str(run.folder)] for run in setting.runs)) for setting in group_runs(runs)
    ]
