"""Images and label files in two folders with the same names."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from msvit.data.decoding import MAX_PIXELS, UnreadableImageError, decode_image
from msvit.data.images import list_images, to_tensor, walk_files
from msvit.data.segmentation.label_files import IGNORE_INDEX, decode_label, to_classes

# Largest number of names in a message.
_MOST_NAMES = 3


class PairedFolders(Dataset[tuple[Tensor, Tensor]]):
    """Image files, each with the label file of the same path and another suffix: `images/a/b.jpg`, `labels/a/b.png`.

    Label files are PNG with one channel of 8 or 16 bits, or with a palette, whose indices are the values. A label is
    drawn on the upright image: `decode_image` rotates images by their EXIF data, and a label only by its own.

    Args:
        images: folder of images, in subfolders or not.
        annotations: folder of label files.
        class_names: names of the classes in the order of their values.
        reduce_zero_label: True if the value 0 is no class and class i is value i + 1, as in ADE20K.
        ignore_index: value of pixels without a class, both in the files and in the items.
        max_pixels: largest number of pixels of a file.
        transform: function of an image, uint8 [3, H, W], and its label, uint8 [H, W], that returns such a pair, such as
            `Augmentation`; None for the image in its own size.

    Attributes:
        pairs: paths of each image and its label, sorted by the path of the image.
        class_names: tuple of names.

    Raises:
        ValueError: a folder does not exist or has no file, an image or a label has no partner or two, or there are more
            classes than `ignore_index` leaves room for.

    Items are (uint8 image [3, H, W], uint8 label [H, W]). A file that cannot be read, a label file with several
    channels, and a label whose size is not that of its image raise `UnreadableImageError`; `msvit.training.batches`
    leaves such an image out and names it. A value that is no class raises ValueError, because then the class names or
    `reduce_zero_label` are wrong for every image.
    """

    def __init__(
        self,
        images: Path,
        annotations: Path,
        *,
        class_names: Sequence[str],
        reduce_zero_label: bool = False,
        ignore_index: int = IGNORE_INDEX,
        max_pixels: int = MAX_PIXELS,
        transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        if not 1 <= len(class_names) <= ignore_index <= 255:
            raise ValueError(
                "class_names, ignore_index: expected 1 or more classes, and at least that number for ignore_index, up "
                f"to 255, got {len(class_names)} and {ignore_index}"
            )
        self.pairs = _pairs(images, annotations)
        self.class_names = tuple(class_names)
        self.reduce_zero_label = reduce_zero_label
        self.ignore_index = ignore_index
        self.max_pixels = max_pixels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image_path, label_path = self.pairs[index]
        image = to_tensor(decode_image(image_path, max_pixels=self.max_pixels))
        values = decode_label(label_path, max_pixels=self.max_pixels)
        _check_sizes(label_path, values, image)
        classes = to_classes(
            values,
            len(self.class_names),
            reduce_zero_label=self.reduce_zero_label,
            ignore_index=self.ignore_index,
            name=str(label_path),
        )
        label = torch.from_numpy(classes)
        return (image, label) if self.transform is None else self.transform(image, label)


def _pairs(images: Path, annotations: Path) -> list[tuple[Path, Path]]:
    by_stem = _by_stem(images, list_images(images))
    labels = _by_stem(annotations, (path for _, paths in walk_files(annotations) for path in paths if _is_png(path)))
    for folder, found, others, kind in (
        (images, by_stem, labels, f"a label file (PNG) in {annotations}"),
        (annotations, labels, by_stem, f"an image in {images}"),
    ):
        if alone := [path for stem, path in found.items() if stem not in others]:
            names = ", ".join(str(path.relative_to(folder)) for path in alone[:_MOST_NAMES])
            more = ", ..." if len(alone) > _MOST_NAMES else ""
            raise ValueError(f"{folder}: expected {kind} for each file, got none for {len(alone)}: {names}{more}")
    return [(path, labels[stem]) for stem, path in by_stem.items()]


def _by_stem(folder: Path, paths: Iterable[Path]) -> dict[Path, Path]:
    """Files by their path in the folder without the suffix."""
    found: dict[Path, Path] = {}
    for path in paths:
        stem = path.relative_to(folder).with_suffix("")
        if stem in found:
            raise ValueError(f"{folder}: expected one file named {stem}, got {found[stem].name} and {path.name}")
        found[stem] = path
    return found


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def _check_sizes(label_path: Path, values: np.ndarray, image: Tensor) -> None:
    label_size, image_size = values.shape, tuple(image.shape[1:])
    if label_size == image_size:
        return
    turned = label_size == image_size[::-1]
    why = "; images are rotated upright by their EXIF data, labels only by their own" if turned else ""
    raise UnreadableImageError(
        f"{label_path}: expected the size of its image, {image_size[1]} x {image_size[0]}, got "
        f"{label_size[1]} x {label_size[0]}{why}"
    )
