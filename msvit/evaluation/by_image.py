"""What a trained model does with its test images: decisions of the gate, right and wrong answers, cost."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import msvit
from msvit.models import MixedScaleVisionTransformer
from msvit.training.build import reset_noise
from msvit.training.runs import Run


@dataclass(frozen=True)
class Evaluation:
    """One model on n images.

    Attributes:
        masks: bool [n, Hc, Wc], fine regions.
        correct: bool [n].
        tokens: int64 [n], patch tokens of each image, as the decision chose them before any reducer.
        gmacs: mean over the images, with the gate; NaN for a model with reducers.
    """

    masks: Tensor
    correct: Tensor
    tokens: Tensor
    gmacs: float

    @property
    def top1(self) -> float:
        """Share of right answers."""
        return float(self.correct.double().mean())

    @property
    def tokens_per_image(self) -> float:
        """Patch tokens."""
        return float(self.tokens.double().mean())

    @property
    def fine_share(self) -> float:
        """Fine regions among all."""
        return float(self.masks.double().mean())

    @property
    def position_mean(self) -> Tensor:
        """[Hc, Wc]: how often each region is fine."""
        return self.masks.double().mean(0)

    @property
    def position_variance(self) -> Tensor:
        """[Hc, Wc]: variance of each region's mask over the images."""
        return self.position_mean * (1 - self.position_mean)

    @property
    def dynamics(self) -> float:
        """Share of the mask's variance that lies between images: 0 is a static pattern, 1 the same for each position.

        The variance of all decisions, g (1 - g) with g the share of fine regions, is that between positions plus the
        mean over positions of that between images. 0 where all regions of all images are alike.
        """
        total = self.fine_share * (1 - self.fine_share)
        return float(self.position_variance.mean()) / total if total > 0 else 0.0


@dataclass(frozen=True)
class TestImages:
    """The first images of a run's test set.

    Attributes:
        images: uint8 [n, 3, H, W].
        labels: int64 [n].
        boxes: int64 [n, 4], left, top, right, bottom of what the label names; None where the data set does not tell.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor | None

    __test__ = False  # the name is no test's

    def first(self, count: int) -> "TestImages":
        """The first `count` of them."""
        return TestImages(self.images[:count], self.labels[:count], None if self.boxes is None else self.boxes[:count])


def load_test_images(run: Run, limit: int | None = None) -> TestImages:
    """The first `limit` test images of a run, all by default.

    Raises:
        ValueError: the data set cannot be read, or has no image.
    """
    dataset: Any = run.test_dataset()
    if isinstance(getattr(dataset, "images", None), Tensor):
        whole = TestImages(dataset.images, dataset.labels, getattr(dataset, "boxes", None))
        return whole if limit is None else whole.first(limit)
    images, labels, count = [], [], 0
    for batch, targets in DataLoader(dataset, batch_size=64, num_workers=run.config.num_workers):
        images.append(batch)
        labels.append(targets)
        count += len(batch)
        if limit is not None and count >= limit:
            break
    if not images:
        raise ValueError(f"{run.folder}: expected test images, got none")
    return TestImages(torch.cat(images)[:limit], torch.cat(labels)[:limit], None)


@torch.inference_mode()
def evaluate(
    model: MixedScaleVisionTransformer, test: TestImages, batch_size: int, masks: Tensor | None = None
) -> Evaluation:
    """Runs the model over the images.

    Args:
        model: in evaluation mode, on any device.
        test: images.
        batch_size: images at once; a token budget is shared within a batch.
        masks: bool [n, Hc, Wc], which replace the gate's decisions.

    Returns:
        On the CPU.
    """
    device = model.patch_embed.proj.weight.device
    decided, tokens, correct = [], [], []
    reset_noise(model, 0)
    for start in range(0, len(test.images), batch_size):
        part = slice(start, start + batch_size)
        images = test.images[part].to(device)
        decision = model.decide(images, None if masks is None else masks[part].to(device))
        decided.append(decision.fine_mask.cpu())
        tokens.append(decision.num_patches().cpu())
        correct.append(model.classify(images, decision).argmax(1).cpu() == test.labels[part])
    counts = torch.cat(tokens)
    return Evaluation(torch.cat(decided), torch.cat(correct), counts, mean_gmacs(model, counts))


def mean_gmacs(model: MixedScaleVisionTransformer, tokens: Tensor) -> float:
    """1e9 multiply-accumulates per image, backbone, head and gate, for images of that many patch tokens each.

    NaN for a model with reducers, whose cost `msvit.macs` does not count.
    """
    if len(model.reducers):
        return math.nan
    counts, images = tokens.unique(return_counts=True)
    total = sum(msvit.macs(model, int(count)) * int(many) for count, many in zip(counts, images, strict=True))
    return (total / len(tokens) + msvit.gate_macs(model)) / 1e9
