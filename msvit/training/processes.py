"""The devices and processes of a run, and the evaluation that all of its processes share."""

from typing import Any

import torch
from accelerate import Accelerator

from msvit.evaluation.scores import Scores, score
from msvit.models import MixedScaleVisionTransformer
from msvit.training.batches import Share, in_memory, ordered_batches
from msvit.training.config import Config

# Images per batch of an evaluation at most: a batch may be larger than the memory holds without accumulation.
_MOST_IMAGES = 256


def make_accelerator(config: Config) -> Accelerator:
    """The devices and processes of a run.

    Without an accelerator, torchrun's processes are found only if the CPU is asked for.
    """
    return Accelerator(mixed_precision=config.precision, cpu=config.cpu or not torch.accelerator.is_available())


def share_of(accelerator: Accelerator) -> Share:
    """The part of the work that this process does."""
    return Share(accelerator.process_index, accelerator.num_processes)


def score_test_set(
    model: MixedScaleVisionTransformer, dataset: Any, config: Config, accelerator: Accelerator
) -> Scores:
    """Scores a model on a test set that all processes read together.

    Args:
        model: the model, on the device of the process.
        dataset: a result of `make_dataset`, or `InMemory`.
        config: the values of the run.
        accelerator: devices and processes.

    Returns:
        The means over the images of all processes.

    Raises:
        ValueError: there is no image, or a label that the model has no output for.
    """
    size = min(_MOST_IMAGES, config.batch_size)
    batches = ordered_batches(in_memory(dataset), size, config.num_workers, share_of(accelerator))
    pairs = ((batch.images, batch.labels) for batch in batches)
    return score(model, pairs, autocast=accelerator.autocast)
