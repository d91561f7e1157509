"""Metrics over the pixels of a test set: mean IoU, and the share of each class's pixels that lie in coarse regions.

Both are metrics of torchmetrics: they count pixels of all processes, in integers, so the result does not depend on the
order of images or on how they are divided.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from msvit.data.segmentation import IGNORE_INDEX


class SegmentationScores(NamedTuple):
    """Scores of a test set, fp64.

    Attributes:
        mean_iou: 0-d, mean of `iou` over the classes that it has; NaN if it has none.
        iou: [num_classes], intersection over union of each class; NaN for a class that no label and no prediction has.
        accuracy: 0-d, share of pixels whose class is right (mmsegmentation's aAcc).
        class_accuracy: [num_classes], share of each class's pixels that are right; NaN for a class that no label has.
    """

    mean_iou: Tensor
    iou: Tensor
    accuracy: Tensor
    class_accuracy: Tensor


class MeanIoU(MulticlassConfusionMatrix):
    """Intersection over union as in mmsegmentation and Segmenter, from the counts of all images together.

        IoU_c = |label = c and prediction = c| / |label = c or prediction = c|

    Pixels whose label is `ignore_index` count in neither set.

    Args:
        num_classes: number of classes.
        ignore_index: label of pixels without a class.

    `update(predictions, labels)` takes classes, integers [..., H, W] of the same shape, and raises ValueError if a
    label is neither a class nor `ignore_index`. `compute()` returns `SegmentationScores`.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX, **arguments: Any) -> None:
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False, **arguments)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts the pixels of some images."""
        if preds.shape != target.shape:
            raise ValueError(
                f"labels: expected the shape of the predictions, {list(preds.shape)}, got {list(target.shape)}"
            )
        _check_labels(target, self.num_classes, self.ignore_index)
        super().update(preds.long(), target.long())

    def compute(self) -> SegmentationScores:  # type: ignore[override]
        """Scores of all pixels so far."""
        counts = self.confmat.double()  # [label, prediction]
        right, labelled, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        iou = right / (labelled + predicted - right)
        return SegmentationScores(iou.nanmean(), iou, right.sum() / counts.sum(), right / labelled)


class CoarseShares(Metric):
    """The share of each class's pixels that lie in coarse regions (figure 4c of the paper).

    Args:
        num_classes: number of classes.
        region_size: height and width of a region in pixels.
        ignore_index: label of pixels without a class.

    `update(fine_masks, labels)` takes decisions, bool [..., Hc, Wc], and the labels of the same windows, integers
    [..., H, W] with Hc = ceil(H / region_size) and the same for the width; padding of a window therefore has no label.
    `compute()` returns fp64 [num_classes], NaN for a class that no label has. Pixels of overlapping windows count once
    for each window.
    """

    coarse: Tensor
    total: Tensor

    def __init__(self, num_classes: int, region_size: int, ignore_index: int = IGNORE_INDEX, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.num_classes = num_classes
        self.region_size = region_size
        self.ignore_index = ignore_index
        for name in ("coarse", "total"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, fine_masks: Tensor, labels: Tensor) -> None:
        """Counts the pixels of some windows."""
        size = self.region_size
        expected = (*labels.shape[:-2], *(math.ceil(side / size) for side in labels.shape[-2:]))
        if fine_masks.shape != expected:
            raise ValueError(
                f"fine_masks: expected {list(expected)} for labels {list(labels.shape)} and regions of {size} pixels, "
                f"got {list(fine_masks.shape)}"
            )
        _check_labels(labels, self.num_classes, self.ignore_index)
        fine = fine_masks.repeat_interleave(size, -2).repeat_interleave(size, -1)
        fine = fine[..., : labels.shape[-2], : labels.shape[-1]]
        counted = labels != self.ignore_index
        self.total += self._count(labels[counted])
        self.coarse += self._count(labels[counted & ~fine])

    def compute(self) -> Tensor:
        """Shares of all pixels so far."""
        return self.coarse.double() / self.total

    def _count(self, classes: Tensor) -> Tensor:
        return torch.bincount(classes.long(), minlength=self.num_classes)


def _check_labels(labels: Tensor, num_classes: int, ignore_index: int | None) -> None:
    wrong = labels[((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)]
    if len(wrong):
        raise ValueError(
            f"labels: expected classes from 0 to {num_classes - 1}, or {ignore_index} for none, got {int(wrong[0])}"
        )
