"""Runs with everything that the report measures of them."""

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
    """A run, its model on the device, and what was measured of it; coverage is None where places are not known."""

    run: Run
    model: MixedScaleVisionTransformer
    test: TestImages
    evaluation: Evaluation
    coverage: Coverage | None
    latency_ms: float


@dataclass(frozen=True)
class Group:
    """Examined runs that differ in their seed only."""

    label: str
    runs: tuple[Examined, ...]

    @property
    def learned(self) -> bool:
        """Whether the gate is a learned one."""
        return self.runs[0].run.config.gate == "learned"


def examine(
    runs: Sequence[Run], device: torch.device, limit: int | None = None, latency_seconds: float = 2.0
) -> list[Group]:
    """Evaluates the runs' models on their test images, and times them.

    Args:
        runs: with a checkpoint each.
        device: where to run.
        limit: test images of each run, all by default.
        latency_seconds: for each model; 0 leaves the times out (not a number).

    Raises:
        FileNotFoundError, ValueError: a run without a checkpoint that can be read, or without test images.
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
