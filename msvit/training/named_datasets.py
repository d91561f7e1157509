"""Data sets that timm finds by name (hfds/, hfids/, wds/, tfds/, torch/), decoded as folders are where timm allows it.

No reader of timm puts another image in place of one that cannot be read: an image of hfds/ or torch/ is left out like
one of a folder, one of wds/ is left out with a warning in the process that reads it, and any other raises an error.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from timm.data import create_dataset
from timm.data.dataset import ImageDataset, IterableImageDataset
from timm.data.readers.reader_wds import ReaderWds, WdsTargetKeyError
from torch.utils.data import IterableDataset
from torchvision.transforms import Compose

from msvit.data.decoding import UnreadableImageError, check_size, decode_image, to_rgb
from msvit.data.images import IMAGE_SUFFIXES, is_image_file
from msvit.training.config import Config
from msvit.training.image_files import ImageFiles


def named_dataset(config: Config, train: bool, transform: Callable[[Any], Any], name: str) -> Any:
    """Makes a data set that timm finds by its name.

    Args:
        config: values of the run.
        train: True for the training split, False for the test split.
        transform: function of an RGB image.
        name: name of the data set in messages.

    Returns:
        A map-style data set, or an iterable one if timm streams it.

    Raises:
        ValueError: the split or the data set does not exist or has no image.
    """
    try:
        dataset = _open(config, train)
    except Exception as error:  # readers raise many kinds of errors for a missing file or package
        raise ValueError(f"{name}: cannot be read ({error})") from error
    if not isinstance(dataset, IterableDataset) and not len(dataset):
        raise ValueError(f"{name}: expected images, got none")
    if isinstance(dataset, ImageDataset):
        return ImageFiles(dataset.reader, name, config.max_pixels, transform)
    if hasattr(dataset, "loader"):
        dataset.loader = partial(decode_image, max_pixels=config.max_pixels)
    dataset.transform = Compose([to_rgb, transform])
    return dataset


def _open(config: Config, train: bool) -> Any:
    kind, _, name = config.data.partition("/")
    values: dict[str, Any] = {
        "split": config.train_split if train else config.test_split,
        "is_training": train,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    if kind.lower() == "wds":
        return IterableImageDataset(
            config.data_root, reader=_Shards(config.max_pixels, root=config.data_root, name=name, **values)
        )
    if kind.lower() == "hfids":
        values["input_img_mode"] = ""  # or timm converts to RGB, which clips 16 bits and drops transparency
    if config.data.lower() in ("torch/folder", "torch/image_folder"):
        values["is_valid_file"] = is_image_file
    return create_dataset(config.data, root=config.data_root, **values)


class _Shards(ReaderWds):
    """timm's reader of WebDataset's tar files, for every suffix and mode; it names the images that it leaves out."""

    def __init__(self, max_pixels: int, **values: Any) -> None:
        keys = ";".join(dict.fromkeys(["jpg", *(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)]))
        super().__init__(input_key=keys, input_img_mode="", **values)
        self.max_pixels = max_pixels

    def _lazy_init(self) -> None:
        super()._lazy_init()
        pipeline: Any = self.ds
        decode = pipeline.pipeline[-2]  # the stage before the last, which renames the image
        decode.args = (partial(_decode_sample, decode.args[0], self.max_pixels),)
        decode.kw = {"handler": _leave_out}


def _decode_sample(decode: Callable[[Any], Any], max_pixels: int, sample: dict[str, Any]) -> Any:
    """timm's decoding of a sample with its target; only images raise UnreadableImageError."""
    name = f"{sample['__url__']}, {sample['__key__']}"
    try:
        decoded = decode(sample)
        if decoded is not None:
            check_size(decoded["jpg"], max_pixels, name)
            decoded["jpg"] = to_rgb(decoded["jpg"])
    except (UnreadableImageError, TypeError, WdsTargetKeyError, MemoryError):
        raise
    except Exception as error:  # decoders raise many kinds of errors for a broken file
        raise UnreadableImageError(f"{name}: not a readable image ({error})") from error
    return decoded


def _leave_out(error: Exception) -> bool:
    """A handler of WebDataset that goes on after an unreadable image and raises other errors."""
    if not isinstance(error, UnreadableImageError):
        raise error
    warnings.warn(f"left out: {error}", stacklevel=2)
    return True
