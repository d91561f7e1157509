"""Training and test images: the built-in digits, folders, and data sets that timm reads by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import create_transform
from torch.utils.data import Dataset, IterableDataset

from msvit.data.digits import DigitsOnPhotographs
from msvit.data.splits import split_folders
from msvit.training.config import Config
from msvit.training.image_files import ClassFolders, ImageFiles
from msvit.training.named_datasets import named_dataset

_NAMED = ("hfds/", "hfids/", "wds/", "tfds/", "torch/")

# Range of a crop's area as a share of the image, for "Inception" crops and for the light crops of section 4.3.
_SCALES = {"inception": (0.08, 1.0), "light": (0.7, 1.0)}


def make_dataset(config: Config, train: bool, image_size: tuple[int, int], classes: Sequence[str] | None = None) -> Any:
    """Makes the training or the test set of a run.

    Args:
        config: values of the run.
        train: True for the training split with augmentation, False for the test split without.
        image_size: (H, W) in pixels.
        classes: names of the class folders in the order of their labels, see `class_names`. None for those of the
            training folder, or of the test folder if there is no training folder.

    Returns:
        A map-style data set, or an iterable one if timm streams it (hfids/, wds/, tfds/). Its items are
        (uint8 image [3, H, W], label).

    Raises:
        ValueError: the folder, split or data set does not exist or has no image, or the test folder has classes that
            the training folder lacks.
    """
    if config.data == "digits":
        if image_size[0] != image_size[1]:
            raise ValueError(f"--image-size: expected square images for the digits, got {image_size}")
        split, size = ("train", config.train_size) if train else ("test", config.test_size)
        return DigitsOnPhotographs(split, size, config.data_seed, image_size[0])
    transform = _transform(config, train, image_size)
    if _is_named(config):
        return named_dataset(config, train, transform, _name(config, train))
    if not train and classes is None and (training := _find_folder(config, True)):
        classes = list(ClassFolders(training, _name(config, True)).class_to_idx)
    name = _name(config, train)
    files = ClassFolders(_folder(config, train), name, None if train else classes)
    return ImageFiles(files, name, config.max_pixels, transform)


def class_names(dataset: Any) -> list[str] | None:
    """Names of the class folders in the order of their labels; None if the data set is not a folder."""
    by_name = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    return list(by_name) if isinstance(by_name, dict) else None


def is_streamed(dataset: Any) -> bool:
    """Whether a data set yields its items in an order of its own, without an index."""
    return isinstance(dataset, IterableDataset)


def count_classes(config: Config, dataset: Any) -> int:
    """Determines the number of classes of a run.

    Args:
        config: values of the run.
        dataset: training or test set of the run.

    Returns:
        `config.num_classes` if it is given, else the number of classes in the data set.

    Raises:
        ValueError: neither is known, the data set has more classes than `config.num_classes`, or there are fewer than
            two.
    """
    found = 10 if config.data == "digits" else _count(dataset)
    wanted = found if config.num_classes is None else config.num_classes
    if wanted is None:
        raise ValueError(f"--num-classes: expected a number, since {config.data} does not give its own, got none")
    if found is not None and found > wanted:
        raise ValueError(f"--num-classes: expected at least the {found} classes of {config.data}, got {wanted}")
    if wanted < 2:
        raise ValueError(f"--data {config.data}: expected two classes or more, got {wanted}")
    return wanted


def _count(dataset: Any) -> int | None:
    reader = getattr(dataset, "reader", None)
    classes = getattr(reader, "class_to_idx", None) or getattr(dataset, "classes", None)
    features = getattr(getattr(reader, "dataset", None), "features", None) or {}
    named = getattr(features.get(getattr(reader, "label_key", "label")), "num_classes", None)
    return len(classes) if classes else named


def _name(config: Config, train: bool) -> str:
    return f"--data {config.data}, split {config.train_split if train else config.test_split}"


def _is_named(config: Config) -> bool:
    return config.data.lower().startswith(_NAMED)


def _folder(config: Config, train: bool) -> Path:
    """Finds the folder of a split. Without one, timm would read the root folder, with the splits as classes."""
    if not Path(config.data).is_dir():
        raise ValueError(f"--data: expected 'digits', a folder or a name such as hfds/cifar10, got {config.data}")
    if folder := _find_folder(config, train):
        return folder
    names = " or ".join(_folder_names(config, train))
    raise ValueError(f"--data {config.data}: expected a folder named {names} in it, got none")


def _find_folder(config: Config, train: bool) -> Path | None:
    folders = (Path(config.data) / name for name in _folder_names(config, train))
    return next((folder for folder in folders if folder.is_dir()), None)


def _folder_names(config: Config, train: bool) -> list[str]:
    return split_folders(train, config.train_split if train else config.test_split)


def _transform(config: Config, train: bool, image_size: tuple[int, int]) -> Any:
    if not train or config.crops == "none":
        return create_transform(image_size, interpolation="bicubic", use_prefetcher=True, crop_pct=0.9)
    return create_transform(
        image_size,
        is_training=True,
        scale=_SCALES[config.crops],
        hflip=config.flip,
        color_jitter=config.color_jitter or cast(Any, None),
        interpolation="bicubic",
        use_prefetcher=True,
    )


class InMemory(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A data set of two tensors, images and labels; `dataset[list of indices]` returns a whole batch."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.as_tensor(indices)
        return self.images.index_select(0, chosen), self.labels.index_select(0, chosen)
