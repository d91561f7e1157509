"""The scores of a Segmenter on test images of any size, by sliding windows."""

from collections import Counter
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
from msvit.models.prediction import Window, segment_images
from msvit.models.sliding_window import enlarged_size, resized_labels
from msvit_kernels import Scales


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
                means, windows = segment_images(model, pixels, window, stride)
            for mean, found, label in zip(means, windows, labels, strict=True):
                sums.add(mean.logits, found, label.to(mean.logits.device))
    return sums.compute()


class _Sums:
    """The sums of a pass over images and processes."""

    def __init__(self, model: Segmenter, window: int) -> None:
        device = model.encoder.patch_embed.proj.weight.device
        self.model, self.window = model, window
        self.iou = MeanIoU(model.num_classes).to(device)
        self.coarse = CoarseShares(model.num_classes, model.encoder.region_width).to(device)
        self.loss, self.pixels = torch.zeros(2, dtype=torch.float64, device=device)
        self.images = 0
        self.windows: Counter[tuple[int, Scales]] = Counter()  # by the number of fine regions and the candidates

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
        self.windows.update((each.num_fine, each.scales) for each in windows)
        self.images += 1

    def _part(self, label: Tensor, top: int, left: int) -> Tensor:
        return label[top : top + self.window, left : left + self.window]

    def compute(self) -> PixelScores:
        """The scores over the images of all processes."""
        sums = torch.tensor([self._window_sums(*kind) for kind in self.windows], dtype=torch.float64).view(-1, 5)
        repeated = torch.tensor([*self.windows.values()], dtype=torch.float64)
        counts = self.loss.new_tensor([*(repeated @ sums).tolist(), self.images])
        totals = torch.cat([torch.stack([self.loss, self.pixels]), counts])
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)
        loss, pixels, windows, tokens, fine, regions, cost, images = totals.tolist()
        if not images or not pixels:
            raise ValueError("images: expected at least one test image with a pixel that has a class, got none")
        found = self.iou.compute()
        return PixelScores(
            loss=loss / pixels,
            mean_iou=float(found.mean_iou),
            accuracy=float(found.accuracy),
            iou=found.iou.tolist(),
            class_accuracy=found.class_accuracy.tolist(),
            coarse_shares=self.coarse.compute().tolist(),
            tokens_per_window=tokens / windows,
            fine_share=fine / regions,
            gmacs=cost / windows / 1e9,
            images=int(images),
        )

    def _window_sums(self, num_fine: int, scales: Scales) -> tuple[float, ...]:
        """What a window adds to the numbers of windows, tokens, fine regions, regions and multiply-accumulates."""
        cost = window_macs(self.model, num_fine, scales)
        return 1, scales.patches(num_fine), num_fine, scales.num_regions, cost


def window_macs(model: Segmenter, num_fine: int, scales: Scales) -> float:
    """Counts the multiply-accumulates of a window of any size, with gate and decoder; `msvit.macs` assumes one size."""
    count = scales.patches(num_fine)
    regions = scales.num_regions / model.encoder.scales.num_regions
    return macs(model.encoder, count) + model.decoder_macs(count, scales) + gate_macs(model) * regions
