"""Accuracy, tokens and multiply-accumulates of a model on a data set."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from msvit.macs import gate_macs, macs
from msvit.models import MixedScaleVisionTransformer
from msvit.training.batches import Batch
from msvit.training.build import reset_noise


@dataclass(frozen=True)
class Evaluation:
    """Means over images: loss, top1 and top5 (shares), patch tokens, share of fine regions, GMACs with the gate.

    Patch tokens are those that the decision chose, before any reducer. GMACs are NaN for a model with reducers.
    """

    loss: float
    top1: float
    top5: float
    tokens_per_image: float
    fine_share: float
    gmacs: float
    images: int


@torch.inference_mode()
def evaluate(
    model: MixedScaleVisionTransformer,
    batches: Iterable[Batch],
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Evaluation:
    """Runs the model over the batches, in evaluation mode; under torch.distributed, over those of all processes.

    Args:
        model: on the device to run on. Its mode is left as it was.
        batches: of this process.
        autocast: makes a context for mixed precision.

    Raises:
        ValueError: there is no image, or a label that the model has no output for.
    """
    device = model.patch_embed.proj.weight.device
    classes = model.num_classes
    top1 = MulticlassAccuracy(classes, average="micro").to(device)
    top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)).to(device)
    loss, share, cost = (MeanMetric(nan_strategy="disable").to(device) for _ in range(3))
    costs = _cost_by_patches(model).to(device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    reset_noise(model, 0)
    images = torch.zeros((), dtype=torch.int64, device=device)
    for batch in batches:
        check_labels(batch.labels, classes)
        labels = batch.labels.to(device)
        with autocast():
            pixels = batch.images.to(device)
            decision = model.decide(pixels)
            logits = model.classify(pixels, decision).float()
        top1.update(logits, labels)
        top5.update(logits, labels)
        loss.update(F.cross_entropy(logits, labels, reduction="none"))
        share.update(decision.fine_shares())
        cost.update(costs[decision.num_patches()])
        images += len(labels)
    for module, mode in modes.items():
        module.training = mode
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(images)
    if not int(images):
        raise ValueError("expected at least one image to evaluate on, got none")
    fine_share = float(share.compute())
    return Evaluation(
        loss=float(loss.compute()),
        top1=float(top1.compute()),
        top5=float(top5.compute()),
        tokens_per_image=model.scales.mean_patches(fine_share),
        fine_share=fine_share,
        gmacs=float(cost.compute()),
        images=int(images),
    )


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Raises ValueError where labels, on the CPU, are not in [0, num_classes)."""
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"--num-classes: got {num_classes}, but an image has the label {int(wrong[0])}")


def _cost_by_patches(model: MixedScaleVisionTransformer) -> Tensor:
    """GMACs of an image by its number of patch tokens; 0 for a number that no image has, NaN with reducers."""
    gate, costs = gate_macs(model), torch.zeros(model.scales.most_patches + 1)
    if len(model.reducers):
        return costs.fill_(math.nan)
    for count in model.scales.possible_patches:
        costs[count] = (macs(model, count) + gate) / 1e9
    return costs
