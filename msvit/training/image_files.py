"""Data sets of image files whose pixels `msvit.data.decode_image` decodes, whoever finds the files."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from timm.utils.misc import natural_key
from torch.utils.data import Dataset

from msvit.data.decoding import decode_image
from msvit.data.images import IMAGE_SUFFIXES, is_image_file, walk_files

# Largest number of names in a message.
_MOST_NAMES = 3


class Reader(Protocol):
    """A sequence of image files, opened or not, and their labels; timm's readers are such sequences."""

    def __getitem__(self, index: int) -> tuple[str | os.PathLike[str] | BinaryIO, Any]: ...

    def __len__(self) -> int: ...


class ClassFolders:
    """The image files of a folder with one folder per class, in the order of timm's reader.

    Files without an image suffix and folders without images are named in a warning.

    Args:
        root: folder of the class folders. The folder that directly contains a file names its class.
        name: name of the data set in errors.
        classes: names of the class folders in the order of their labels; None for those in `root`, in natural order.

    Attributes:
        samples: path and label of each image.
        class_to_idx: labels by class.

    Raises:
        ValueError: there is no image, an image lies outside of the class folders, or a folder is not in `classes`.
    """

    def __init__(self, root: Path, name: str, classes: Sequence[str] | None = None) -> None:
        folders = dict(walk_files(root))
        images = {folder: [path for path in paths if is_image_file(path)] for folder, paths in folders.items()}
        paths = sorted((path for found in images.values() for path in found), key=lambda path: natural_key(str(path)))
        if not paths:
            raise ValueError(
                f"{name}: expected images ({', '.join(IMAGE_SUFFIXES)}) in class folders of {root}, got none"
            )
        if images.get(root):
            raise ValueError(f"{name}: expected images only in class folders, got {images[root][0]}")
        found = sorted({path.parent.name for path in paths}, key=natural_key)
        self.class_to_idx = {each: label for label, each in enumerate(found if classes is None else classes)}
        if unknown := [each for each in found if each not in self.class_to_idx]:
            raise ValueError(
                f"{name}: expected only classes of the training images, got {', '.join(unknown[:_MOST_NAMES])}"
            )
        self.samples = [(path, self.class_to_idx[path.parent.name]) for path in paths]
        _warn_of_others(root, folders, images)

    def __getitem__(self, index: int) -> tuple[Path, int]:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)


class ImageFiles(Dataset[tuple[Any, Any]]):
    """Decoded and transformed images, with their labels.

    An image that cannot be read raises `UnreadableImageError`; `msvit.training.batches` leaves it out.

    Args:
        reader: files and labels.
        name: name of the data set, for messages about files without a name.
        max_pixels: largest number of pixels of a file.
        transform: function of the decoded image.
    """

    def __init__(self, reader: Reader, name: str, max_pixels: int, transform: Callable[[Any], Any]) -> None:
        self.reader = reader
        self.name = name
        self.max_pixels = max_pixels
        self.transform = transform

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        file, label = self.reader[index]
        if isinstance(file, (str, os.PathLike)):
            return self.transform(decode_image(file, max_pixels=self.max_pixels)), label
        with file:
            name = getattr(file, "name", f"{self.name}, image {index}")
            return self.transform(decode_image(file, max_pixels=self.max_pixels, name=name)), label

    def __len__(self) -> int:
        return len(self.reader)


def _warn_of_others(root: Path, folders: dict[Path, list[Path]], images: dict[Path, list[Path]]) -> None:
    others = [path for paths in folders.values() for path in paths if not is_image_file(path)]
    without = [folder for folder, found in images.items() if not found and folder != root]
    for kind, paths in (("files without an image suffix", others), ("folders without an image", without)):
        if paths:
            names = ", ".join(str(path.relative_to(root)) for path in sorted(paths)[:_MOST_NAMES])
            more = ", ..." if len(paths) > _MOST_NAMES else ""
            warnings.warn(f"{root}: {kind} are left out: {len(paths)} ({names}{more})", stacklevel=4)
