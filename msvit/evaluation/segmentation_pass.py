"""The scores of a Segmenter on test images of any size, by sliding windows."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from msvit.data.segmentation import IGNORE_INDEX
from msvit.evaluation.segmentation import CoarseShares, MeanIoU
from msvit.gates.fixed import reset_noise
from msvit.macs import gate_macs, macs
from msvit.models import Segmenter
from msvit.models.modes import evaluation_mode
from msvit.models.prediction import MAX_TOKENS, Window, batches, decided_windows, normalised_image, segment_windows
from msvit.models.sliding_window import ViewMean, enlarged_size, make_views, resized_labels


@dataclass(frozen=True)
class PixelScores:
    """Scores of a test set.

    Attributes:
        loss: cross-entropy in nats, mean over all pixels that have a class.
        mean_iou, accuracy: as in `msvit.evaluation.segmentation.SegmentationScores`.
        iou, class_accuracy, coarse_shares: those of each class; NaN for a class without pixels.
        tokens_per_window: mean number of patch tokens.
        fine_share: share of fine regions.
        gmacs: 1e9 multiply-accumulates per window, with gate and decoder.
        images: number of images.
    """

    loss: float
    mean_iou: float
    accuracy: float
    iou: list[float]
    class_accuracy: list[float]
    coarse_shares: list[float]
    tokens_per_window: float
    fine_share: float
    gmacs: float
    images: int


@torch.no_grad()
def score_segmentation(
    model: Segmenter,
    images: Iterable[tuple[Sequence[Tensor] | Tensor, Sequence[Tensor] | Tensor]],
    window: int,
    stride: int,
    *,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> PixelScores:
    """Scores a model on a test set; under torch.distributed, on the images of all processes together.

    Args:
        model: model on the device to run on. Its mode is restored.
        images: pairs of images, uint8 [3, H, W] each, and their labels, uint8 [H, W] each, whose windows may share a
            batch, for this process.
        window: height and width of a window in pixels, as for `Segmenter.predict`.
        stride: distance in pixels between two windows.
        autocast: function that makes a context manager for mixed precision.

    Returns:
        The scores over all images.

    Raises:
        ValueError: no image has a pixel with a class, or a label is neither a class nor 255.
    """
    sums = _Sums(model, window)
    reset_noise(model.gate, 0)
    with evaluation_mode(model):
        for pixels, labels in images:
            with autocast():
                means, windows = _segment(model, pixels, window, stride)
            for mean, found, label in zip(means, windows, labels, strict=True):
                sums.add(mean.logits, found, label.to(mean.logits.device))
    return sums.compute()


def _segment(
    model: Segmenter, images: Sequence[Tensor] | Tensor, window: int, stride: int
) -> tuple[list[ViewMean], list[list[Window]]]:
    """The logits and the windows of each image."""
    means, windows = [], []
    for image in images:
        mean, views = make_views(normalised_image(image, model), (1.0,), False, window, stride)
        means.append(mean)
        windows.append(decided_windows(model, views))
    for batch in batches((each for found in windows for each in found), MAX_TOKENS):
        segment_windows(model, batch)
    return means, windows


class _Sums:
    """The sums of a pass over images and processes."""

    def __init__(self, model: Segmenter, window: int) -> None:
        device = model.encoder.patch_embed.proj.weight.device
        self.model, self.window = model, window
        self.iou = MeanIoU(model.num_classes).to(device)
        self.coarse = CoarseShares(model.num_classes, model.encoder.region_width).to(device)
        self.loss, self.pixels = torch.zeros(2, dtype=torch.float64, device=device)
        self.counts = dict.fromkeys(("tokens", "fine", "regions", "macs", "windows", "images"), 0.0)

    def add(self, logits: Tensor, windows: Sequence[Window], label: Tensor) -> None:
        """Adds an image: logits [classes, H, W], its windows, and its label [H, W]."""
        self.iou.update(logits.argmax(0), label)
        loss = F.cross_entropy(logits[None].float(), label[None].long(), ignore_index=IGNORE_INDEX, reduction="sum")
        self.loss += loss
        self.pixels += (label != IGNORE_INDEX).sum()
        size = enlarged_size((label.shape[0], label.shape[1]), self.window)
        enlarged = resized_labels(label, size)
        masks = torch.stack([each.fine_mask for each in windows])
        self.coarse.update(masks, torch.stack([self._part(enlarged, *each.place) for each in windows]))
        for each in windows:
            self.counts["tokens"] += each.scales.patches(each.num_fine)
            self.counts["fine"] += each.num_fine
            self.counts["regions"] += each.scales.num_regions
            self.counts["macs"] += window_macs(self.model, each)
        self.counts["windows"] += len(windows)
        self.counts["images"] += 1

    def _part(self, label: Tensor, top: int, left: int) -> Tensor:
        return label[top : top + self.window, left : left + self.window]

    def compute(self) -> PixelScores:
        """The scores over the images of all processes."""
        totals = torch.stack([self.loss, self.pixels, *(self.loss.new_tensor(x) for x in self.counts.values())])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)
        loss, pixels, *counts = totals.tolist()
        total = dict(zip(self.counts, counts, strict=True))
        if not total["images"] or not pixels:
            raise ValueError("images: expected at least one test image with a pixel that has a class, got none")
        found = self.iou.compute()
        return PixelScores(
            loss=loss / pixels,
            mean_iou=float(found.mean_iou),
            accuracy=float(found.accuracy),
            iou=found.iou.tolist(),
            class_accuracy=found.class_accuracy.tolist(),
            coarse_shares=self.coarse.compute().tolist(),
            tokens_per_window=total["tokens"] / total["windows"],
            fine_share=total["fine"] / total["regions"],
            gmacs=total["macs"] / total["windows"] / 1e9,
            images=int(total["images"]),
        )


def window_macs(model: Segmenter, window: Window) -> float:
    """Counts the multiply-accumulates of a window of any size, with gate and decoder; `msvit.macs` assumes one size."""
    scales = window.scales
    count = scales.patches(window.num_fine)
    regions = scales.num_regions / model.encoder.scales.num_regions
    return macs(model.encoder, count) + model.decoder_macs(count, scales) + gate_macs(model) * regions
