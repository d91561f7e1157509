"""Pairs of images and label files: which are paired, what a label file means, and wrong files and folders."""

import numpy as np
import pytest
import torch
from PIL import Image

from msvit.data import UnreadableImageError, list_images, read_image
from msvit.data.segmentation import ADE20K_CLASSES, CLASSES_FILE, PairedFolders, find_split
from msvit.data.segmentation.label_files import decode_label, to_classes

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
VALUES = np.random.default_rng(1).integers(0, 3, (6, 10), dtype=np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)


def with_palette(values):
    image = Image.fromarray(values).convert("L")
    image.putpalette(bytes(range(255, -1, -1)) * 3)  # index 0 is not black
    assert image.mode == "P"
    return image


def pair(root, name="a", pixels=IMAGE, label=VALUES, **options):
    save(root / "images" / f"{name}.bmp", pixels)
    save(root / "labels" / f"{name}.png", label, **options)


def pair_of_folders(root):
    save(root / "train/images/a.png", IMAGE)
    save(root / "train/annotations/a.png", VALUES)


def paired(root, **options):
    return PairedFolders(root / "images", root / "labels", **{"class_names": ("a", "b", "c"), **options})


def test_pairs_are_sorted_and_may_lie_in_subfolders(tmp_path):
    for name in ("b", "sub.dir/a", "a.x"):
        pair(tmp_path, name, label=np.full((6, 10), len(name) % 3, np.uint8))
    data = paired(tmp_path)
    assert [image for image, _ in data.pairs] == list_images(tmp_path / "images")
    assert [label.relative_to(tmp_path / "labels").as_posix() for _, label in data.pairs] == [
        "a.x.png",
        "b.png",
        "sub.dir/a.png",
    ]
    assert [int(label.unique()) for _, label in data] == [0, 1, 0]


@pytest.mark.parametrize(
    "stored", [VALUES, VALUES.astype(np.uint16), with_palette(VALUES)], ids=["grey", "16 bits", "palette"]
)
def test_item(tmp_path, stored):
    pair(tmp_path, label=stored)
    image, label = paired(tmp_path)[0]
    assert (image.dtype, label.dtype) == (torch.uint8, torch.uint8)
    assert torch.equal(image, torch.from_numpy(IMAGE).permute(2, 0, 1))
    assert torch.equal(label, torch.from_numpy(VALUES))


def test_transform_has_image_and_label(tmp_path):
    pair(tmp_path)
    image, label = paired(tmp_path, transform=lambda image, label: (image[:, 1:], label[1:]))[0]
    assert (image.shape, label.shape) == ((3, 5, 10), (5, 10))


@pytest.mark.parametrize(
    ("reduce", "values", "classes"),
    [(False, [0, 2, 255], [0, 2, 255]), (True, [0, 1, 3, 255], [255, 0, 2, 255])],
    ids=["plain", "reduced"],
)
def test_classes_of_values(reduce, values, classes):
    found = to_classes(np.array([values]), 3, reduce_zero_label=reduce, ignore_index=255, name="any")
    assert (found.tolist(), found.dtype) == ([classes], np.uint8)


@pytest.mark.parametrize(
    ("reduce", "value", "words"),
    [
        (False, 3, "from 0 to 2 for 3 classes, or 255 for none, got 3; .*set reduce_zero_label"),
        (True, 4, "from 1 to 3 for 3 classes, or 255 for none, got 4$"),
        (True, 256, ".*got 256"),
    ],
    ids=["plain", "reduced", "16 bits"],
)
def test_a_value_that_is_no_class_is_refused(tmp_path, reduce, value, words):
    pair(tmp_path, label=np.full((6, 10), value, np.uint16))
    with pytest.raises(ValueError, match=f"a.png: expected values {words}") as error:
        paired(tmp_path, reduce_zero_label=reduce)[0]
    assert not isinstance(error.value, UnreadableImageError), "it holds for the data set, so no image is left out"


@pytest.mark.parametrize("turned", range(1, 9))
def test_exif_turns_image_and_label_alike(tmp_path, turned):
    exif = Image.Exif()
    exif[0x0112] = turned
    save(tmp_path / "image.png", np.stack([VALUES] * 3, -1), exif=exif)
    save(tmp_path / "label.png", VALUES, exif=exif)
    image = read_image(tmp_path / "image.png", 6)
    label = decode_label(tmp_path / "label.png")
    assert label.shape == ((6, 10) if turned < 5 else (10, 6))
    save(tmp_path / "upright.png", np.stack([label] * 3, -1).astype(np.uint8))
    assert torch.equal(image, read_image(tmp_path / "upright.png", 6))


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (np.stack([VALUES] * 3, -1), "a.png: expected a label file of one channel .* got mode RGB"),
        (Image.fromarray(VALUES > 0), "got mode 1"),
        (VALUES[:, 1:], "a.png: expected the size of its image, 10 x 6, got 9 x 6$"),
        (VALUES.T.copy(), "10 x 6, got 6 x 10; images are rotated upright by their EXIF data"),
    ],
    ids=["rgb", "1 bit", "size", "turned"],
)
def test_a_label_that_does_not_fit_counts_as_unreadable(tmp_path, label, words):
    pair(tmp_path, label=label)
    with pytest.raises(UnreadableImageError, match=words):
        paired(tmp_path)[0]


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_damaged_and_large_files_count_as_unreadable(tmp_path, folder):
    pair(tmp_path)
    with pytest.raises(UnreadableImageError, match=r"a\.bmp: expected at most 59 pixels"):
        paired(tmp_path, max_pixels=59)[0]
    path = next((tmp_path / folder).iterdir())
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UnreadableImageError, match=f"{path.name}: not a readable image"):
        paired(tmp_path)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "labels/b.png").unlink(), "images: expected a label file .* got none for 1: b.bmp"),
        (lambda root: (root / "images/b.bmp").unlink(), "labels: expected an image .* got none for 1: b.png"),
        (lambda root: save(root / "images/b.jpg", IMAGE), "images: expected one file named b, got b.bmp and b.jpg"),
        (lambda root: (root / "labels").rename(root / "other"), "labels: expected a folder"),
    ],
    ids=["no label", "no image", "twice", "no folder"],
)
def test_wrong_folders_are_named(tmp_path, change, words):
    pair(tmp_path, "a")
    pair(tmp_path, "b")
    change(tmp_path)
    with pytest.raises(ValueError, match=words):
        paired(tmp_path)


@pytest.mark.parametrize(("classes", "ignore"), [(0, 255), (256, 255), (3, 2), (3, 256)])
def test_wrong_numbers_of_classes(tmp_path, classes, ignore):
    with pytest.raises(ValueError, match=f"class_names, ignore_index: .* got {classes} and {ignore}"):
        paired(tmp_path, class_names=["x"] * classes, ignore_index=ignore)


def test_ade20k_names():
    assert len(ADE20K_CLASSES) == len(set(ADE20K_CLASSES)) == 150
    assert ADE20K_CLASSES[:3] + ADE20K_CLASSES[75:77] + ADE20K_CLASSES[-1:] == (
        "wall",
        "building",
        "sky",
        "swivel chair",
        "boat",
        "flag",
    )


LAYOUTS = {
    "ade20k": ("images/training", "annotations/training", "images/validation", "annotations/validation"),
    "archive": tuple(
        f"ADEChallengeData2016/{kind}/{split}"
        for split in ("training", "validation")
        for kind in ("images", "annotations")
    ),
    "by split": ("train/images", "train/annotations", "val/images", "val/annotations"),
    "by kind": ("images/train", "annotations/train", "images/val", "annotations/val"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("train", [True, False], ids=["train", "test"])
def test_layouts(tmp_path, layout, train):
    for folder in LAYOUTS[layout]:
        save(tmp_path / folder / "ADE_1.png", VALUES)
    found = find_split(tmp_path, train)
    folders = LAYOUTS[layout][:2] if train else LAYOUTS[layout][2:]
    assert [found.images, found.annotations] == [tmp_path / folder for folder in folders]
    assert (found.class_names, found.reduce_zero_label) == (ADE20K_CLASSES, True)


def test_classes_of_a_folder(tmp_path):
    for folder in LAYOUTS["by split"]:
        save(tmp_path / folder / "ADE_1.png", VALUES)
    (tmp_path / CLASSES_FILE).write_text("\ufeffroad\r\nswivel chair\n\n", encoding="utf-8")
    assert find_split(tmp_path, True)[2:] == (("road", "swivel chair"), False)
    assert find_split(tmp_path, True, class_names=["x", "y"])[2:] == (("x", "y"), False)
    assert find_split(tmp_path, True, reduce_zero_label=True).reduce_zero_label
    assert find_split(tmp_path, False, name="train").images == tmp_path / "train/images"


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda root: None, "expected the folders images/SPLIT .* SPLIT one of train, training, got none"),
        (lambda root: save(root / "train/images/a.png", IMAGE), "expected the folders"),
        (pair_of_folders, r"expected the names of the classes, .*classes\.txt"),
        (lambda root: (root / CLASSES_FILE).write_text("a\n\nb"), r"classes\.txt: expected one name per line"),
        (lambda root: (root / CLASSES_FILE).write_text("a\na"), "each once"),
        (lambda root: (root / CLASSES_FILE).write_text(""), "got \\[\\]"),
        (lambda root: (root / CLASSES_FILE).write_bytes(b"caf\xe9"), r"classes\.txt: expected UTF-8 .*0xe9"),
    ],
    ids=["empty", "no annotations", "no classes", "empty line", "twice", "no name", "Latin-1"],
)
def test_wrong_layouts_are_named(tmp_path, prepare, words):
    prepare(tmp_path)
    if (tmp_path / CLASSES_FILE).exists():
        pair_of_folders(tmp_path)
    with pytest.raises(ValueError, match=words):
        find_split(tmp_path, True)


def test_missing_root_is_named(tmp_path):
    with pytest.raises(ValueError, match="gone: expected a folder with images and annotations, got no such folder"):
        find_split(tmp_path / "gone", True)
