"""Classification: one label for an image."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from msvit.evaluation.outcomes import check_labels
from msvit.models import MixedScaleVisionTransformer
from msvit.tokens.decision import Decision
from msvit.training.backbones import make_by_name
from msvit.training.batches import calibration_images
from msvit.training.datasets import class_names, count_classes, make_dataset
from msvit.training.tasks.base import Task, TaskScores

if TYPE_CHECKING:
    from accelerate import Accelerator


class Classification(Task):
    """The model is a `MixedScaleVisionTransformer`, the score is its accuracy."""

    test_columns = ("test_loss", "top1", "top5", "tokens_per_image", "fine_share", "gmacs")

    def dataset(self, train: bool, image_size: tuple[int, int], classes: Sequence[str] | None = None) -> Any:
        return make_dataset(self.config, train, image_size, classes)

    def class_names(self, dataset: Any) -> list[str] | None:
        return class_names(dataset)

    def count_classes(self, dataset: Any) -> int:
        return count_classes(self.config, dataset)

    def calibration_images(self, dataset: Any, image_size: tuple[int, int]) -> Tensor:
        return calibration_images(dataset)

    def make_model(self, num_classes: int, *, pretrained: bool) -> Any:
        name = self.config.model
        if name.startswith("msvit_seg_"):
            raise ValueError(f"--model {name}: expected --task segmentation, got classification")
        return make_by_name(self.config, name, pretrained=pretrained, num_classes=num_classes)

    def backbone(self, model: Any) -> MixedScaleVisionTransformer:
        backbone: MixedScaleVisionTransformer = model
        return backbone

    def check_labels(self, labels: Tensor, num_classes: int) -> None:
        check_labels(labels, num_classes)

    def loss(self, model: Any, images: Tensor, labels: Tensor, decision: Decision) -> Tensor:
        logits = model.classify(images, decision).float()
        return F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)

    def score(self, model: Any, dataset: Any, accelerator: "Accelerator") -> TaskScores:
        # The base install can read runs but lacks the packages that score them.
        from msvit.training.processes import score_test_set

        found = score_test_set(model, dataset, self.config, accelerator)
        columns = {
            "test_loss": found.loss,
            "top1": found.top1,
            "top5": found.top5,
            "gmacs": found.gmacs,
            "tokens_per_image": found.tokens_per_image,
            "fine_share": found.fine_share,
        }
        text = (
            f"top-1 {found.top1:.2%}, top-5 {found.top5:.2%}, loss {found.loss:.4f}, "
            f"{found.tokens_per_image:.1f} tokens/image ({found.fine_share:.1%} of the regions fine), "
            f"{found.gmacs:.3f} GMACs/image, {found.images} images, {found.left_out} left out"
        )
        return TaskScores(columns, text, found.images, found.left_out)

    def epoch_text(self, row: Mapping[str, float]) -> str:
        return f"top-1 {row['top1']:.2%}"
