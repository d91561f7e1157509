"""The devices and processes of a run, and the evaluation that all of its processes share."""

from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator

from msvit.evaluation.scores import Scores, score
from msvit.models import MixedScaleVisionTransformer
from msvit.training.batches import Share, in_memory, ordered_batches
from msvit.training.config import Config
from msvit.training.datasets import is_streamed

# Largest batch of an evaluation; without accumulation, a training batch may not fit in memory.
_MOST_IMAGES = 256


def make_accelerator(config: Config) -> Accelerator:
    """Sets up the devices and processes of a run.

    On a machine without a GPU, Accelerate finds torchrun's processes only with `cpu=True`.
    """
    return Accelerator(mixed_precision=config.precision, cpu=config.cpu or not torch.accelerator.is_available())


def share_of(accelerator: Accelerator) -> Share:
    """The part of the work that this process does."""
    return Share(accelerator.process_index, accelerator.num_processes)


def score_test_set(
    model: MixedScaleVisionTransformer, dataset: Any, config: Config, accelerator: Accelerator
) -> Scores:
    """Scores a model on a test set that all processes read together. Images that cannot be read are named in warnings.

    Args:
        model: model on the device of the process.
        dataset: result of `Task.dataset`, or `InMemory`.
        config: values of the run.
        accelerator: devices and processes.

    Returns:
        The means over the images of all processes, and the number of images that are left out.

    Raises:
        ValueError: there is no readable image, or the model has no output for a label.
    """
    size = min(_MOST_IMAGES, config.batch_size)
    batches = ordered_batches(in_memory(dataset), size, config.num_workers, share_of(accelerator))
    pairs = ((batch.images, batch.labels) for batch in batches if len(batch.labels))
    found = score(model, pairs, autocast=accelerator.autocast)
    return replace(found, left_out=max(0, _count(dataset) - found.images))


def _count(dataset: Any) -> int:
    """Number of images of a test set; a streamed one may have no length, but the reader knows the number."""
    if is_streamed(dataset):
        return int(getattr(getattr(dataset, "reader", None), "num_samples", None) or 0)
    return len(dataset)
