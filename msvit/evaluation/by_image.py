"""The decision, prediction and cost of a model for each test image."""

from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from msvit.evaluation.outcomes import gmacs_by_patches, outcomes
from msvit.models import MixedScaleVisionTransformer


@dataclass(frozen=True)
class Evaluation:
    """The results of a model for n images.

    Attributes:
        masks: bool [n, Hc, Wc], fine regions.
        correct: bool [n], True if the prediction is correct.
        tokens: int64 [n], number of patch tokens of the decision, before any reducer.
        gmacs: 1e9 multiply-accumulates per image, gate included; NaN for a model with reducers.
    """

    masks: Tensor
    correct: Tensor
    tokens: Tensor
    gmacs: float

    @property
    def top1(self) -> float:
        """Share of correct predictions."""
        return float(self.correct.double().mean())

    @property
    def tokens_per_image(self) -> float:
        """Mean number of patch tokens."""
        return float(self.tokens.double().mean())

    @property
    def fine_share(self) -> float:
        """Share of fine regions among all regions."""
        return float(self.masks.double().mean())

    @property
    def position_mean(self) -> Tensor:
        """fp64 [Hc, Wc], share of images in which each region is fine."""
        return self.masks.double().mean(0)

    @property
    def position_variance(self) -> Tensor:
        """fp64 [Hc, Wc], variance of each region's mask over the images."""
        return self.position_mean * (1 - self.position_mean)

    @property
    def dynamics(self) -> float:
        """Share of the mask's variance that lies between images.

        It is 0 for a static pattern, and 1 if all positions are fine equally often. The variance of all decisions is
        g (1 - g) for a share g of fine regions; it is the variance between positions plus the mean over positions of
        the variance between images. If all regions of all images have the same scale, the result is 0.
        """
        total = self.fine_share * (1 - self.fine_share)
        return float(self.position_variance.mean()) / total if total > 0 else 0.0


@dataclass(frozen=True)
class TestImages:
    """The first images of a run's test set.

    Attributes:
        images: uint8 [n, 3, H, W].
        labels: int64 [n].
        boxes: int64 [n, 4], left, top, right and bottom of the labelled object in pixels, right and bottom exclusive;
            None if the data set does not give them.
        left_out: number of images before the last one that could not be read.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor | None
    left_out: int = 0

    __test__ = False  # pytest would collect it as a class of tests

    def first(self, count: int) -> "TestImages":
        """The first `count` images, all if there are fewer."""
        return TestImages(self.images[:count], self.labels[:count], None if self.boxes is None else self.boxes[:count])


def evaluate(
    model: MixedScaleVisionTransformer, test: TestImages, batch_size: int, masks: Tensor | None = None
) -> Evaluation:
    """Runs a model over test images.

    Args:
        model: any mixed-scale model, on the device to run on.
        test: images with their labels, on the CPU.
        batch_size: images per batch; a token budget is shared within a batch.
        masks: bool [n, Hc, Wc], fine regions that replace the gate's decisions. If None, the gate decides.

    Returns:
        The results, on the CPU.

    Raises:
        ValueError: a label is outside [0, model.num_classes).
    """
    batches = zip(test.images.split(batch_size), test.labels.split(batch_size), strict=True)
    decided, tokens, correct = [], [], []
    with closing(outcomes(model, batches, masks=masks)) as results:
        for decision, logits, labels in results:
            decided.append(decision.fine_mask.cpu())
            tokens.append(decision.num_patches().cpu())
            correct.append((logits.argmax(1) == labels).cpu())
    counts = torch.cat(tokens)
    gmacs = float(gmacs_by_patches(model)[counts].mean())
    return Evaluation(torch.cat(decided), torch.cat(correct), counts, gmacs)
