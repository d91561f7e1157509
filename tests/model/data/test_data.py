"""Reading images: sizes and colours, the order of a folder, and files that are damaged."""

import io
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from msvit.data import SAMPLE_NAMES, list_images, load_images, read_image, sample_photographs


def photograph(width=90, height=60, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_samples_are_photographs_on_disk():
    found = sample_photographs()
    assert set(found) <= set(SAMPLE_NAMES)
    assert {"astronaut", "chelsea", "coffee", "rocket"} <= set(found)
    images = load_images(None, 64)
    assert images.shape == (len(found), 3, 64, 64)
    assert images.dtype == torch.uint8
    assert (images.flatten(1).float().std(1) > 5).all()


def test_limit_keeps_the_first():
    assert torch.equal(load_images(None, 32, limit=3), load_images(None, 32)[:3])


def test_folder_is_recursive_and_sorted(tmp_path):
    for name in ("b.png", "sub/a.JPG", "a.webp", ".hidden.png", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        photograph().save(path, format="PNG")
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == ["a.webp", "b.png", "sub/a.JPG"]
    assert load_images(tmp_path, 48).shape == (3, 3, 48, 48)


def test_crops_at_the_centre(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    Image.fromarray(pixels).save(tmp_path / "bar.png")
    assert read_image(tmp_path / "bar.png", 10).eq(200).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    photograph(mode=mode).save(path)
    assert read_image(path, 32).shape == (3, 32, 32)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((20, 20), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", 8).eq(0x80).all()


def test_exif_orientation(tmp_path):
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", 20)[:, 15:].eq(255).all()


FORMATS = {
    "png": {},
    "jpeg": {"quality": 90},
    "progressive": {"quality": 90, "progressive": True},
    "tiff": {},
    "bmp": {},
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_truncated_file_is_refused_by_name(tmp_path, kind, share, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as another library may have left it
    buffer = io.BytesIO()
    photograph(300, 200).save(buffer, format="JPEG" if kind == "progressive" else kind, **FORMATS[kind])
    path = tmp_path / f"cut.{'jpeg' if kind == 'progressive' else kind}"
    path.write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
    with pytest.raises(ValueError, match=r"cut\.\w+: not a readable image"):
        read_image(path, 64)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize("content", [b"", b"not an image at all", b"\x89PNG\r\n\x1a\n" + bytes(64)])
def test_corrupt_file_is_named_and_skipped(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    shutil.copy(sample_photographs()["coffee"], tmp_path / "good.png")
    with (
        pytest.warns(UserWarning, match=r"images read: 1, files left out: 1"),
        pytest.warns(UserWarning, match=r"skipped: .*bad\.png: not a readable image"),
    ):
        images = load_images(tmp_path, 64)
    assert torch.equal(images, read_image(sample_photographs()["coffee"], 64)[None])


def test_corrupt_pixels_are_refused(tmp_path):
    content = bytearray(sample_photographs()["coffee"].read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "flipped.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"flipped\.png"):
        read_image(tmp_path / "flipped.png", 64)


def test_no_readable_image_is_an_error(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=r"bad\.jpg"), pytest.raises(ValueError, match=r"got none of 1 files"):
        load_images(tmp_path, 64)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "missing", "missing: expected a folder of images, got no such path"),
        (lambda folder: folder, "expected images .*, got none"),
        (lambda folder: folder / "file.png", "expected a folder of images, got a file"),
    ],
    ids=["missing", "empty", "file"],
)
def test_wrong_folder_is_named(tmp_path, make, words):
    folder = make(tmp_path)
    if folder.suffix:
        folder.write_bytes(b"")
    with pytest.raises(ValueError, match=words):
        load_images(folder, 64)


@pytest.mark.parametrize(("arguments", "words"), [((0,), "size: expected 1"), ((64, 0), "limit: expected 1")])
def test_wrong_numbers(arguments, words):
    size, *limit = arguments
    with pytest.raises(ValueError, match=words):
        load_images(None, size, limit=limit[0] if limit else None)
