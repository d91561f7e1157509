"""Mean IoU and the shares of coarse regions agree with direct counts, over parts and over processes."""

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from msvit.evaluation.segmentation import CoarseShares, MeanIoU

CLASSES = 5


def maps(seed=0, present=(0, 1, 3)):
    """Predictions and labels [4, 6, 7]; classes that are not `present` have no pixel, and some pixels no class."""
    generator = torch.Generator().manual_seed(seed)
    choices = torch.tensor(present, dtype=torch.uint8)
    predictions, labels = (choices[torch.randint(len(present), (4, 6, 7), generator=generator)] for _ in range(2))
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return predictions, labels


def oracle(predictions, labels):
    """mmsegmentation's definition, class by class."""
    counted = labels != 255
    predictions, labels = predictions[counted].numpy(), labels[counted].numpy()
    iou, accuracy = np.full(CLASSES, np.nan), np.full(CLASSES, np.nan)
    for c in range(CLASSES):
        intersection, union = ((labels == c) & (predictions == c)).sum(), ((labels == c) | (predictions == c)).sum()
        iou[c] = intersection / union if union else np.nan
        accuracy[c] = intersection / (labels == c).sum() if (labels == c).any() else np.nan
    return np.nanmean(iou), iou, (predictions == labels).mean(), accuracy


CASES = {
    "absent classes": maps(),
    "all classes": maps(1, range(CLASSES)),
    "only predicted": (maps()[0], maps()[1].where(maps()[1] != 1, 255)),
    "never predicted": (maps()[0].where(maps()[0] != 1, 0), maps()[1]),
    "one class": maps(2, (4,)),
}


@pytest.mark.parametrize("name", CASES)
def test_scores(name):
    predictions, labels = CASES[name]
    metric = MeanIoU(CLASSES)
    for image, label in zip(predictions, labels, strict=True):
        metric.update(image, label)
    expected = oracle(predictions, labels)
    for found, value in zip(metric.compute(), expected, strict=True):
        assert found.dtype == torch.float64
        np.testing.assert_array_equal(found.numpy(), np.asarray(value))
    # Where torchmetrics defines an IoU, it is the same.
    jaccard = MulticlassJaccardIndex(CLASSES, average=None, ignore_index=255)(predictions.long(), labels.long())
    torch.testing.assert_close(metric.compute().iou.nan_to_num().float(), jaccard)


def test_without_a_labelled_pixel():
    metric = MeanIoU(CLASSES)
    metric.update(torch.zeros(2, 3, dtype=torch.int64), torch.full((2, 3), 255))
    assert all(value.isnan().all() for value in metric.compute())


def in_two_processes(make, first, second):
    """The result of a process whose `torch.distributed` gathers its state and that of another one."""
    other = make()
    other.update(*second)
    states = iter([getattr(other, name) for name in other._defaults])
    metric = make(dist_sync_fn=lambda state, group=None: [state, next(states)], distributed_available_fn=lambda: True)
    metric.update(*first)
    return metric.compute()


def test_processes_are_added():
    predictions, labels = maps()
    metric = MeanIoU(CLASSES)
    metric.update(predictions, labels)
    first, second = ((predictions[part], labels[part]) for part in (slice(0, 1), slice(1, 4)))
    found = in_two_processes(lambda **options: MeanIoU(CLASSES, **options), first, second)
    assert torch.equal(found.mean_iou, metric.compute().mean_iou)
    assert torch.equal(found.iou.nan_to_num(), metric.compute().iou.nan_to_num())


@pytest.mark.parametrize("size", [(6, 7), (8, 9), (4, 3)], ids=["padded", "divisible", "narrow"])
def test_coarse_shares(size):
    labels = torch.randint(0, 4, (3, *size)).to(torch.uint8)  # class 4 is absent
    labels[torch.rand(labels.shape) < 0.2] = 255
    masks = torch.rand(3, -(-size[0] // 4), -(-size[1] // 4)) < 0.5
    coarse, total = np.zeros(CLASSES), np.zeros(CLASSES)
    for i, y, x in np.ndindex(*labels.shape):
        if labels[i, y, x] != 255:
            total[labels[i, y, x]] += 1
            coarse[labels[i, y, x]] += not masks[i, y // 4, x // 4]
    with np.errstate(invalid="ignore"):
        expected = coarse / total
    metric = CoarseShares(CLASSES, 4)
    metric.update(masks[:2], labels[:2])
    metric.update(masks[2], labels[2])
    np.testing.assert_array_equal(metric.compute().numpy(), expected)
    both = in_two_processes(
        lambda **options: CoarseShares(CLASSES, 4, **options), (masks[0], labels[0]), (masks[1:], labels[1:])
    )
    np.testing.assert_array_equal(both.numpy(), expected)


LABELS = torch.zeros(2, 8, 8, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MeanIoU(5).update(LABELS[0], LABELS), r"labels: expected the shape .* \[8, 8\], got \[2, 8, 8\]"),
        (lambda: MeanIoU(5).update(LABELS, LABELS + 7), "labels: expected classes from 0 to 4, or 255 for none, got 7"),
        (lambda: MeanIoU(5).update(LABELS, LABELS - 1), "got -1"),
        (
            lambda: CoarseShares(5, 4).update(LABELS[:, :2, :3], LABELS),
            r"fine_masks: expected \[2, 2, 2\] .* \[2, 2, 3\]",
        ),
        (lambda: CoarseShares(5, 4).update(LABELS[:, :2, :2] > 0, LABELS + 5), "got 5"),
    ],
    ids=["shape", "class", "negative", "mask", "coarse class"],
)
def test_wrong_calls(call, words):
    with pytest.raises(ValueError, match=words):
        call()
