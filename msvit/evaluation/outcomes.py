"""The pass over test images on which every evaluation is based, and the cost of an image by its number of tokens."""

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from msvit.gates.fixed import reset_noise
from msvit.macs import gate_macs, macs
from msvit.models import MixedScaleVisionTransformer
from msvit.models.modes import evaluation_mode
from msvit.tokens.decision import Decision


class Outcome(NamedTuple):
    """The result of a model for one batch, on the model's device.

    Attributes:
        decision: fine regions of each image.
        logits: fp32 [batch, num_classes].
        labels: int64 [batch], correct classes.
    """

    decision: Decision
    logits: Tensor
    labels: Tensor


@torch.inference_mode()
def outcomes(
    model: MixedScaleVisionTransformer,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    masks: Tensor | None = None,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Generator[Outcome]:
    """Runs a model over batches, in evaluation mode and with a random gate at the start of its sequence.

    Args:
        model: any mixed-scale model, on the device to run on. Its mode is restored after the last batch.
        batches: pairs of images, uint8 [batch, 3, H, W], and labels, int64 [batch], on the CPU.
        masks: bool [images of all batches, Hc, Wc], fine regions that replace the gate's decisions. If
            None, the gate decides.
        autocast: function that makes a context manager for mixed precision.

    Yields:
        One outcome for each batch.

    Raises:
        ValueError: a label is outside [0, model.num_classes).
    """
    device = model.patch_embed.proj.weight.device
    reset_noise(model.gate, 0)
    start = 0
    with evaluation_mode(model):
        for images, labels in batches:
            check_labels(labels, model.num_classes)
            stop = start + len(labels)
            mask = None if masks is None else masks[start:stop].to(device)
            with autocast():
                pixels = images.to(device)
                decision = model.decide(pixels, mask)
                logits = model.classify(pixels, decision).float()
            yield Outcome(decision, logits, labels.to(device))
            start = stop


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raises ValueError unless all labels, a tensor on the CPU, are in [0, num_classes)."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"--num-classes: got {num_classes}, but an image has the label {int(wrong[0])}")


def gmacs_by_patches(model: MixedScaleVisionTransformer) -> Tensor:
    """Computes the cost of one image for every number of patch tokens, gate included.

    Args:
        model: any mixed-scale model.

    Returns:
        fp64 [1 + most patch tokens], in 1e9 multiply-accumulates, on the CPU. The entry of a number that no image can
        have is 0. All entries are NaN for a model with reducers, whose cost `msvit.macs` does not count.
    """
    costs = torch.zeros(model.scales.most_patches + 1, dtype=torch.float64)
    if len(model.reducers):
        return costs.fill_(math.nan)
    gate = gate_macs(model)
    for count in model.scales.possible_patches:
        costs[count] = (macs(model, count) + gate) / 1e9
    return costs
