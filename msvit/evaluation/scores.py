"""Means over a test set: loss, accuracy, tokens and multiply-accumulates, over the images of all processes."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from msvit.evaluation.outcomes import gmacs_by_patches, outcomes
from msvit.models import MixedScaleVisionTransformer


@dataclass(frozen=True)
class Scores:
    """Means over images.

    Attributes:
        loss: cross-entropy in nats.
        top1, top5: shares of images whose label is the first prediction, or among the first five.
        tokens_per_image: number of patch tokens of the decision, before any reducer.
        fine_share: share of fine regions.
        gmacs: 1e9 multiply-accumulates, gate included; NaN for a model with reducers.
        images: number of images.
        left_out: number of images that could not be read.
    """

    loss: float
    top1: float
    top5: float
    tokens_per_image: float
    fine_share: float
    gmacs: float
    images: int
    left_out: int = 0


@torch.inference_mode()
def score(
    model: MixedScaleVisionTransformer,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Scores:
    """Scores a model on a test set; under torch.distributed, on the batches of all processes together.

    Args:
        model: any mixed-scale model, on the device to run on. Its mode is restored.
        batches: pairs of images, uint8 [batch, 3, H, W], and labels, int64 [batch], for this process.
        autocast: function that makes a context manager for mixed precision.

    Returns:
        The means over all images.

    Raises:
        ValueError: there is no image, or a label is outside [0, model.num_classes).
    """
    device = model.patch_embed.proj.weight.device
    classes = model.num_classes
    top1 = MulticlassAccuracy(classes, average="micro").to(device)
    top5 = MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)).to(device)
    loss, share, cost = (MeanMetric(nan_strategy="disable").to(device) for _ in range(3))
    costs = gmacs_by_patches(model).float().to(device)
    images = torch.zeros((), dtype=torch.int64, device=device)
    with closing(outcomes(model, batches, autocast=autocast)) as results:
        for decision, logits, labels in results:
            top1.update(logits, labels)
            top5.update(logits, labels)
            loss.update(F.cross_entropy(logits, labels, reduction="none"))
            share.update(decision.fine_shares())
            cost.update(costs[decision.num_patches()])
            images += len(labels)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(images)
    if not int(images):
        raise ValueError("batches: expected at least one test image, got none")
    fine_share = float(share.compute())
    return Scores(
        loss=float(loss.compute()),
        top1=float(top1.compute()),
        top5=float(top5.compute()),
        tokens_per_image=model.scales.mean_patches(fine_share),
        fine_share=fine_share,
        gmacs=float(cost.compute()),
        images=int(images),
    )
