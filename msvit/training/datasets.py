"""Training and test images: the built-in digits, folders, and what timm reads by name."""

from collections.abc import Sized
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import create_dataset, create_transform
from torch.utils.data import Dataset, IterableDataset

from msvit.data.digits import DigitsOnPhotographs
from msvit.training.config import Config

_NAMED = ("hfds/", "hfids/", "wds/", "tfds/", "torch/")
# timm looks for a split under these names, too.
_TRAIN_FOLDERS, _TEST_FOLDERS = ("train", "training"), ("val", "valid", "validation", "eval", "test")

# Area of a crop as a share of the image: "Inception" crops, and what is left of it in the light ones (section 4.3).
_SCALES = {"inception": (0.08, 1.0), "light": (0.7, 1.0)}


def make_dataset(config: Config, train: bool, image_size: tuple[int, int], interpolation: str = "bicubic") -> Any:
    """Items are (uint8 image [3, H, W], label).

    Args:
        config: of the run.
        train: the training split with augmentation, or the test split without.
        image_size: (H, W) in pixels.
        interpolation: of resized images, for timm.

    Returns:
        A map-style data set, or an iterable one where timm streams (hfids/, wds/, tfds/).

    Raises:
        ValueError: no such folder, split or data set, or no image in it.
    """
    if config.data == "digits":
        if image_size[0] != image_size[1]:
            raise ValueError(f"--image-size: expected square images for the digits, got {image_size}")
        split, size = ("train", config.train_size) if train else ("test", config.test_size)
        return DigitsOnPhotographs(split, size, config.data_seed, image_size[0])
    split = config.train_split if train else config.test_split
    dataset = _timm_dataset(config, split, train)
    dataset.transform = _transform(config, train, image_size, interpolation)
    return dataset


def is_streamed(dataset: Any) -> bool:
    """Whether items come in an order of the data set's own, without an index."""
    return isinstance(dataset, IterableDataset)


def count_classes(config: Config, dataset: Any) -> int:
    """Number of classes, from the configuration or the data set.

    Raises:
        ValueError: neither tells.
    """
    if config.num_classes is not None:
        return config.num_classes
    if config.data == "digits":
        return 10
    reader = getattr(dataset, "reader", None)
    classes = getattr(reader, "class_to_idx", None) or getattr(dataset, "classes", None)
    features = getattr(getattr(reader, "dataset", None), "features", None) or {}
    named = getattr(features.get(getattr(reader, "label_key", "label")), "num_classes", None)
    if not classes and not named:
        raise ValueError(f"--num-classes: expected a number, {config.data} does not tell")
    return len(classes) if classes else int(cast(int, named))


def _timm_dataset(config: Config, split: str, train: bool) -> Any:
    named = config.data.lower().startswith(_NAMED)
    name, root = (config.data, config.data_root) if named else ("", str(_folder(config.data, split, train)))
    try:
        dataset = create_dataset(
            name,
            root=root,
            split=split,
            is_training=train,
            batch_size=config.batch_size,
            seed=config.seed,
            search_split=named,
        )
    except Exception as error:  # readers raise whatever a missing file or package makes them stumble over
        raise ValueError(f"--data {config.data}, split {split}: cannot be read ({error})") from error
    if not is_streamed(dataset) and not len(cast(Sized, dataset)):
        raise ValueError(f"--data {config.data}, split {split}: expected images, got none")
    return dataset


def _folder(data: str, split: str, train: bool) -> Path:
    """The folder of the split; timm would take the root where it finds none, and so classes for splits."""
    root = Path(data)
    if not root.is_dir():
        raise ValueError(f"--data: expected 'digits', a folder or a name such as hfds/cifar10; {data} is no folder")
    names = dict.fromkeys((split, *(_TRAIN_FOLDERS if train else _TEST_FOLDERS)))
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise ValueError(f"--data {data}: expected a folder of that split in it, {' or '.join(names)}; got none")


def _transform(config: Config, train: bool, image_size: tuple[int, int], interpolation: str) -> Any:
    if not train or config.crops == "none":
        return create_transform(image_size, interpolation=interpolation, use_prefetcher=True, crop_pct=0.9)
    return create_transform(
        image_size,
        is_training=True,
        scale=_SCALES[config.crops],
        hflip=config.flip,
        color_jitter=config.color_jitter or cast(Any, None),
        interpolation=interpolation,
        use_prefetcher=True,
    )


class InMemory(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images and labels as two tensors, whole batches of which are taken at once: `dataset[list of indices]`."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.as_tensor(indices)
        return self.images.index_select(0, chosen), self.labels.index_select(0, chosen)
