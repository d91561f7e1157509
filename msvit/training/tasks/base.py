"""The interface of a task."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from msvit.models import MixedScaleVisionTransformer
from msvit.tokens.decision import Decision
from msvit.training.config import Config

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class TaskScores:
    """The scores of a model on the test images.

    Attributes:
        columns: entries of metrics.csv by column, those of `Task.test_columns`.
        text: the scores as `msvit eval` prints them.
        images: number of images.
        left_out: number of images that could not be read.
        classes: a row of classes.csv for each class; empty if the task has no scores by class.
    """

    columns: Mapping[str, float]
    text: str
    images: int
    left_out: int
    classes: Sequence[Mapping[str, Any]] = field(default=())


class Task(ABC):
    """The part of a run that depends on what the model predicts.

    Args:
        config: values of the run.

    Attributes:
        test_columns: columns of metrics.csv for the scores on the test images; "test_loss" is the first.
    """

    test_columns: ClassVar[tuple[str, ...]]

    def __init__(self, config: Config) -> None:
        self.config = config

    @abstractmethod
    def dataset(self, train: bool, image_size: tuple[int, int], classes: Sequence[str] | None = None) -> Any:
        """Makes the training set with augmentation, or the test set without.

        Args:
            train: True for the training set.
            image_size: (H, W) of a training image in pixels.
            classes: names of the classes in the order of their labels, `class_names` of the training set. None for
                those that the data set itself gives.

        Returns:
            A map-style data set, or an iterable one if timm streams it. Its items are (uint8 image [3, H, W], label).

        Raises:
            ValueError: the data cannot be found, or they do not fit the classes.
        """

    @abstractmethod
    def class_names(self, dataset: Any) -> list[str] | None:
        """Names of the classes of a training set in the order of their labels; None if it does not give them."""

    @abstractmethod
    def calibration_images(self, dataset: Any, image_size: tuple[int, int]) -> Tensor:
        """Reads the images of a training or test set by which a gate is calibrated, uint8 [n, 3, *image_size]."""

    @abstractmethod
    def count_classes(self, dataset: Any) -> int:
        """Determines the number of classes of a run from its training or test set.

        Raises:
            ValueError: the number is unknown, or it contradicts `config.num_classes`.
        """

    @abstractmethod
    def make_model(self, num_classes: int, *, pretrained: bool) -> Any:
        """Makes the model with a gate of its own, with timm's weights or with random ones.

        Raises:
            ValueError: the model is unknown, or sizes do not fit.
        """

    @abstractmethod
    def backbone(self, model: Any) -> MixedScaleVisionTransformer:
        """The part of a model that has the gate and takes the decision."""

    @abstractmethod
    def check_labels(self, labels: Tensor, num_classes: int) -> None:
        """Raises ValueError unless the model has an output for all labels of a batch, a tensor on the CPU."""

    @abstractmethod
    def loss(self, model: Any, images: Tensor, labels: Tensor, decision: Decision) -> Tensor:
        """Computes the loss of a batch, 0-d fp32, without that of the gate."""

    @abstractmethod
    def score(self, model: Any, dataset: Any, accelerator: "Accelerator") -> TaskScores:
        """Scores a model on a test set that all processes read together; unreadable images are named in warnings.

        Args:
            model: model on the device of the process. Its mode is restored.
            dataset: test set, result of `dataset`.
            accelerator: devices and processes.

        Returns:
            The scores over the images of all processes.

        Raises:
            ValueError: there is no readable image, or the model has no output for a label.
        """

    @abstractmethod
    def epoch_text(self, row: Mapping[str, float]) -> str:
        """The main score in a row of metrics.csv, for the line of an epoch on the terminal."""
