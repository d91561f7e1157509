"""Segmentation: a class for every pixel."""

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from msvit.data.segmentation import (
    ADE20K_CLASSES,
    IGNORE_INDEX,
    Augmentation,
    DigitSegmentation,
    PairedFolders,
    find_split,
    read_class_names,
)
from msvit.models import MixedScaleVisionTransformer, Segmenter
from msvit.models.decoders import DECODERS
from msvit.models.sliding_window import enlarged_size, resized, resized_labels
from msvit.tokens.decision import Decision
from msvit.tokens.policies import Budget
from msvit.training.backbones import make_by_name, pixel_mean
from msvit.training.batches import Share, calibration_images, in_memory, ordered_batches
from msvit.training.config_checks import flag
from msvit.training.datasets import InMemory
from msvit.training.tasks.base import Task, TaskScores

if TYPE_CHECKING:
    from accelerate import Accelerator

    from msvit.evaluation.segmentation_pass import PixelScores

# Largest number of images whose windows share batches in an evaluation.
_MOST_IMAGES = 256


class Segmentation(Task):
    """The model is a `Segmenter` whose gate does not learn, the score is its mean IoU with sliding windows."""

    test_columns = ("test_loss", "miou", "pixel_accuracy", "tokens_per_image", "fine_share", "gmacs")

    def dataset(self, train: bool, image_size: tuple[int, int], classes: Sequence[str] | None = None) -> Any:
        config = self.config
        if config.data == "digits":
            for name in ("class_list", "reduce_zero_label"):
                if getattr(config, name) is not None:
                    raise ValueError(f"{flag(name)}: expected only with a folder in --data, got digits")
            if image_size[0] != image_size[1]:
                raise ValueError(f"--image-size: expected square images for the digits, got {image_size}")
            split, size = ("train", config.train_size) if train else ("test", config.test_size)
            return DigitSegmentation(split, size, config.data_seed, image_size[0])
        if not Path(config.data).is_dir():
            raise ValueError(f"--data: expected 'digits' or a folder, got {config.data}")
        given = _read_classes(config.class_list)
        try:
            found = find_split(
                Path(config.data),
                train,
                name=config.train_split if train else config.test_split,
                class_names=given,
                reduce_zero_label=config.reduce_zero_label,
            )
        except ValueError as error:
            raise ValueError(f"--data {error}; see --class-list") from error
        if classes is not None and [*classes] != [*found.class_names]:
            raise ValueError(f"--data {config.data}: expected the classes of the run, {_some(classes)}, got others")
        return PairedFolders(
            found.images,
            found.annotations,
            class_names=found.class_names,
            reduce_zero_label=found.reduce_zero_label,
            ignore_index=IGNORE_INDEX,
            max_pixels=config.max_pixels,
            transform=self._augmentation(image_size) if train else None,
        )

    def _augmentation(self, image_size: tuple[int, int]) -> Augmentation:
        config = self.config
        red, green, blue = (round(255 * mean) for mean in pixel_mean(config))
        return Augmentation(
            image_size,
            scales=(config.scale_min, config.scale_max),
            flip=config.flip,
            distort=config.photometric,
            pad_colour=(red, green, blue),
            ignore_index=IGNORE_INDEX,
        )

    def class_names(self, dataset: Any) -> list[str] | None:
        return [*dataset.class_names]

    def count_classes(self, dataset: Any) -> int:
        found, wanted = len(dataset.class_names), self.config.num_classes
        if wanted is not None and wanted < found:
            raise ValueError(
                f"--num-classes: expected at least the {found} classes of {self.config.data}, got {wanted}"
            )
        count: int = wanted or found
        if count < 2:
            raise ValueError(f"--data {self.config.data}: expected two classes or more, got {count}")
        return count

    def calibration_images(self, dataset: Any, image_size: tuple[int, int]) -> Tensor:
        return calibration_images(self.centred(dataset, min(image_size)))

    def centred(self, dataset: Any, side: int) -> Any:
        """The test set with images and labels cut to the squares of `side` pixels in their middle, which all fit."""
        if isinstance(dataset, PairedFolders) and dataset.transform is None:
            dataset = copy.copy(dataset)
            dataset.transform = _Centre(side)
        return dataset

    def make_model(self, num_classes: int, *, pretrained: bool) -> Any:
        config = self.config
        options: dict[str, Any] = {
            "decode": config.decode,
            "decoder_depth": config.decoder_depth,
            "dropout": config.decoder_dropout,
        }
        if config.model.startswith("msvit_seg_"):
            name = config.model
            if config.decoder is not None:
                name = re.sub(rf"_({'|'.join(DECODERS)})_patch", f"_{config.decoder}_patch", name)
            model = make_by_name(config, name, pretrained=pretrained, num_classes=num_classes, **options)
        else:
            encoder = make_by_name(config, config.model, pretrained=pretrained, num_classes=0)
            model = Segmenter(encoder, num_classes, config.decoder or "mask", **options)
        self._check_budget(model)
        return model

    def _check_budget(self, model: Segmenter) -> None:
        """Refuses a budget that windows of test images cannot keep; it would stop a run after its first epoch."""
        config, window = self.config, self.window(model)
        if config.tokens_per_image is None:
            return
        regions = math.ceil(window / model.encoder.region_width) ** 2
        try:
            Budget(config.tokens_per_image, config.budget_per).check(regions, model.encoder.scale_factor)
        except ValueError as error:
            raise ValueError(f"--tokens-per-image, --window {window}: {error}") from error

    def backbone(self, model: Any) -> MixedScaleVisionTransformer:
        encoder: MixedScaleVisionTransformer = model.encoder
        return encoder

    def check_labels(self, labels: Tensor, num_classes: int) -> None:
        wrong = labels[(labels >= num_classes) & (labels != IGNORE_INDEX)]
        if len(wrong):
            raise ValueError(f"--num-classes: got {num_classes}, but a pixel has the label {int(wrong[0])}")

    def loss(self, model: Any, images: Tensor, labels: Tensor, decision: Decision) -> Tensor:
        logits = model.enlarged(model.segment(images, decision), labels.shape[1:]).float()
        total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORE_INDEX, reduction="sum")
        # A mean over no pixel would be NaN; without a class in the batch, the loss is 0.
        return total / (labels != IGNORE_INDEX).sum().clamp(min=1)

    def score(self, model: Any, dataset: Any, accelerator: "Accelerator") -> TaskScores:
        # The base install can read runs but lacks the packages that score them.
        from msvit.training.processes import share_of

        found = self.measure(model, dataset, share_of(accelerator), accelerator.autocast)
        columns = {
            "test_loss": found.loss,
            "miou": found.mean_iou,
            "pixel_accuracy": found.accuracy,
            "tokens_per_image": found.tokens_per_window,
            "fine_share": found.fine_share,
            "gmacs": found.gmacs,
        }
        left_out = len(dataset) - found.images
        text = (
            f"mIoU {found.mean_iou:.2%}, pixel accuracy {found.accuracy:.2%}, loss {found.loss:.4f}, "
            f"{found.tokens_per_window:.1f} tokens/window ({found.fine_share:.1%} of the regions fine), "
            f"{found.gmacs:.3f} GMACs/window, {found.images} images, {left_out} left out"
        )
        rows = zip(found.iou, found.class_accuracy, found.coarse_shares, strict=True)
        names = dict(enumerate(dataset.class_names))
        classes = [
            {"class": names.get(i, str(i)), "iou": iou, "accuracy": accuracy, "coarse_share": share}
            for i, (iou, accuracy, share) in enumerate(rows)
        ]
        return TaskScores(columns, text, found.images, left_out, classes)

    def window(self, model: Segmenter) -> int:
        """Height and width of a window of the test images in pixels."""
        return self.config.window or min(model.encoder.image_size)

    def measure(
        self,
        model: Segmenter,
        dataset: Any,
        share: Share,
        autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> "PixelScores":
        """Scores a model on this process's share of a test set, see `score_segmentation`."""
        from msvit.evaluation.segmentation_pass import score_segmentation

        config, images = self.config, in_memory(dataset)
        window = self.window(model)
        # Image files differ in size.
        size = min(_MOST_IMAGES, config.batch_size) if isinstance(images, InMemory) else 1
        batches = ordered_batches(images, size, config.num_workers, share)
        pairs = ((batch.images, batch.labels) for batch in batches if len(batch.labels))
        return score_segmentation(model, pairs, window, config.stride or window, autocast=autocast)

    def epoch_text(self, row: Mapping[str, float]) -> str:
        return f"mIoU {row['miou']:.2%}"


class _Centre:
    """The square in the middle of an image and of its label, which are enlarged if they are smaller."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        size = enlarged_size((image.shape[1], image.shape[2]), self.side)
        image = resized(image.float(), size).round().to(image.dtype)
        label = resized_labels(label, size)
        top, left = ((length - self.side) // 2 for length in size)
        rows, columns = slice(top, top + self.side), slice(left, left + self.side)
        return image[:, rows, columns], label[rows, columns]


def _read_classes(class_list: str | None) -> tuple[str, ...] | None:
    """The names in a class list; None without one."""
    if class_list is None:
        return None
    if class_list == "ade20k":
        return ADE20K_CLASSES
    try:
        return read_class_names(Path(class_list))
    except ValueError as error:
        raise ValueError(f"--class-list {error}") from error
    except OSError as error:
        raise ValueError(f"--class-list {class_list}: cannot be read ({error})") from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)
