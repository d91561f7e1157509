"""Finds the folders of a split and the class names of a segmentation data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from msvit.data.segmentation.ade20k import ADE20K_CLASSES
from msvit.data.splits import split_folders

CLASSES_FILE = "classes.txt"
_ADE20K_ROOT, _ADE20K_FILES = "ADEChallengeData2016", "ADE_*"


class Split(NamedTuple):
    """The folders and classes of a training or test set, for `PairedFolders`.

    Attributes:
        images: folder of images.
        annotations: folder of label files.
        class_names: names of the classes in the order of their values.
        reduce_zero_label: True if the value 0 is no class and class i is value i + 1, as in ADE20K.
    """

    images: Path
    annotations: Path
    class_names: tuple[str, ...]
    reduce_zero_label: bool


def find_split(
    root: Path,
    train: bool,
    *,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    reduce_zero_label: bool | None = None,
) -> Split:
    """Finds the images, labels and classes of a split.

    The folders are those of ADE20K, `images/training` and `annotations/training`, or `train/images` and
    `train/annotations`, in `root` or in its folder `ADEChallengeData2016`. A training split is named train or training,
    a test split val, valid, validation, eval or test. The classes are `class_names`, or the lines of `classes.txt` in
    `root`, or the 150 of ADE20K if the images have its names, `ADE_*`.

    Args:
        root: folder of the data set.
        train: True for the training split, False for the test split.
        name: name of the split's folder, which is looked for before the usual ones.
        class_names: names of the classes in the order of their values; None for those of the data set.
        reduce_zero_label: whether the value 0 is no class; None for True with ADE20K's own classes, else False.

    Returns:
        Folders and classes.

    Raises:
        ValueError: the folders do not exist, or the classes are not known.
    """
    splits = split_folders(train, name)
    if not root.is_dir():
        raise ValueError(f"{root}: expected a folder with images and annotations, got no such folder")
    for base in (root, root / _ADE20K_ROOT):
        for split in splits:
            for images, annotations in _layouts(base, split):
                if images.is_dir() and annotations.is_dir():
                    return _with_classes(root, base, images, annotations, class_names, reduce_zero_label)
    raise ValueError(
        f"{root}: expected the folders images/SPLIT and annotations/SPLIT, or SPLIT/images and SPLIT/annotations, with "
        f"SPLIT one of {', '.join(splits)}, got none"
    )


def _layouts(base: Path, split: str) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
    return (
        (base / "images" / split, base / "annotations" / split),
        (base / split / "images", base / split / "annotations"),
    )


def _with_classes(
    root: Path,
    base: Path,
    images: Path,
    annotations: Path,
    class_names: Sequence[str] | None,
    reduce_zero_label: bool | None,
) -> Split:
    file = next((path for path in (root / CLASSES_FILE, base / CLASSES_FILE) if path.is_file()), None)
    own_classes = class_names is None and file is None and any(images.glob(_ADE20K_FILES))
    if class_names is not None:
        names = tuple(class_names)
    elif file is not None:
        names = read_class_names(file)
    elif own_classes:
        names = ADE20K_CLASSES
    else:
        raise ValueError(
            f"{root}: expected the names of the classes, one per line, in {CLASSES_FILE}, got no such file; only those "
            f"of images with ADE20K's names ({_ADE20K_FILES}) are built in"
        )
    return Split(images, annotations, names, own_classes if reduce_zero_label is None else reduce_zero_label)


def read_class_names(file: Path) -> tuple[str, ...]:
    """Reads a file with the name of one class per line, in the order of their values.

    Raises:
        ValueError: a line is empty, a name occurs twice, there is none, or the file is not UTF-8.
        OSError: the file cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected UTF-8 text, got byte {error.object[error.start]:#x}") from error
    names = tuple(line.strip() for line in text.splitlines())
    while names and not names[-1]:
        names = names[:-1]
    if not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{file}: expected one name per line, each once and without empty lines, got {list(names)}")
    return names
