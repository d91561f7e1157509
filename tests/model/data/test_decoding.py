"""Colours of image files in every mode, their orientation, and the limit on pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from msvit.data import MAX_PIXELS, UnreadableImageError, decode_image, load_images, read_image
from tests.model.data.image_cases import CASES, GREY, flat


@pytest.mark.parametrize("name", CASES)
def test_colour(tmp_path, name):
    write, colour = CASES[name]
    write(tmp_path / name)
    centre = read_image(tmp_path / name, 12)[:, 4:8, 4:8]
    assert torch.equal(centre, torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 4, 4))


@pytest.mark.parametrize("mode", ["La", "PA", "RGBa", "HSV", "I;16L", "I;16B"])
def test_modes_that_few_files_have(mode, monkeypatch):
    """Pillow writes no file of these modes, and reads some of them."""
    source = flat(0x8000, mode) if mode.startswith("I;16") else flat(GREY).convert("RGBA")
    image = source.convert("LA").convert("La") if mode == "La" else source.convert(mode)
    monkeypatch.setattr(Image, "open", lambda _: image)
    assert decode_image("any").getpixel((0, 0)) == GREY


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg", "webp"])
def test_exif_orientation_is_applied_once(tmp_path, suffix, turned):
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30] = 255
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, 3),
    }[turned](upright)
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"turned.{suffix}", exif=exif)
    found = np.asarray(decode_image(tmp_path / f"turned.{suffix}"))
    assert found.shape == upright.shape
    assert np.array_equal(found > 127, upright > 127)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ([[0.5, float("nan")]], "got nan to nan"),
        ([[-1.0, 1.0]], "got -1 to 1"),
        ([[0.0, 1e6]], "expected values from 0 to one of 1, 255, 65535, got 0 to 1e\\+06"),
    ],
    ids=["nan", "negative", "huge"],
)
def test_floats_without_a_known_white_are_refused(tmp_path, pixels, words):
    Image.fromarray(np.array(pixels, np.float32)).save(tmp_path / "floats.tiff")
    with pytest.raises(UnreadableImageError, match=f"floats.tiff: not a readable image.*{words}"):
        read_image(tmp_path / "floats.tiff", 8)


def test_limit_on_pixels_is_checked_before_decoding(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    flat(1, "1").resize((13000, 13000)).save(buffer, format="PNG")
    (tmp_path / "bomb.png").write_bytes(buffer.getvalue()[:200])  # enough for the header only
    assert MAX_PIXELS < 13000 * 13000
    words = "bomb.png: expected at most 100,000,000 pixels, got 13,000 x 13,000 = 169,000,000; --max-pixels"
    with pytest.raises(UnreadableImageError, match=words):
        read_image(tmp_path / "bomb.png", 8)
    with pytest.raises(UnreadableImageError, match="truncated"):
        read_image(tmp_path / "bomb.png", 8, max_pixels=200_000_000)


def test_limit_replaces_that_of_pillow(tmp_path, monkeypatch):
    flat(GREY).save(tmp_path / "image.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image(tmp_path / "image.png", 8, max_pixels=576).eq(128).all()
    assert Image.MAX_IMAGE_PIXELS == 10
    with (
        pytest.warns(UserWarning, match="skipped: .*image.png: expected at most 575 pixels"),
        pytest.raises(ValueError, match="got none of 1 files"),
    ):
        load_images(tmp_path, 8, max_pixels=575)


def test_errors_that_may_pass_are_no_unreadable_images(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"gone\.png: not a readable image"):
        decode_image(tmp_path / "gone.png")

    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        decode_image(Failing(), name="any")
