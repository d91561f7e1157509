"""`msvit segment`: its picture, its sources of weights, and its one-line errors."""

import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import msvit
import msvit.training
from msvit.data import sample_photographs
from tests.model.cli.test_cli import call
from tests.model.model_helpers import randomise

NAMES = ("sky", "a class whose name is far too long for its column of the legend", "cat")
TINY = "msvit_seg_tiny_linear_patch16_32_512"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints with and without a gate, and the names of their classes."""
    root = tmp_path_factory.mktemp("segmenters")
    (root / "names.txt").write_text("\n".join(NAMES))
    for gate in ("mlp", "entropy"):
        model = randomise(msvit.create_model(TINY, num_classes=3, img_size=64, gate=gate))
        msvit.save_checkpoint(model, root / f"{gate}.safetensors")
    msvit.save_checkpoint(model.encoder, root / "encoder.safetensors")
    return root


def segment(folder, output, *options, checkpoint="entropy.safetensors", images=("chelsea",)):
    options = ("--checkpoint", folder / checkpoint, "--model", TINY, "--classes", folder / "names.txt", *options)
    return call("segment", *images, "-o", output / "out.png", *options)


def test_picture_and_counts(folder, tmp_path):
    Image.open(sample_photographs()["coffee"]).resize((65, 260)).save(tmp_path / "tall.png")
    options = ("--window", 64, "--width", 200)
    result = segment(folder, tmp_path, *options, images=("chelsea", tmp_path / "tall.png"))
    assert result.exit_code == 0, result.output
    # 96 x 64 pixels in two windows, and 64 x 256 in seven, at a stride of 32 pixels.
    assert re.search(r"^chelsea: 7 of 16 tokens per window, 2 windows; \w", result.stdout, re.MULTILINE)
    assert re.search(r"^tall: \d+ of 16 tokens per window, 7 windows; \w", result.stdout, re.MULTILINE)
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width >= 3 * 192
        assert picture.height > 128 + 768


@pytest.mark.parametrize(
    ("checkpoint", "options", "tokens"),
    [
        ("entropy", ("--tokens", 16), 16),
        ("entropy", ("--gate", "coarse", "--threshold", 0.5), 4),
        ("entropy", ("--gate", "random", "--tokens", 10), 10),
        ("mlp", ("--gate", "fine", "--threshold", 0.5), 16),
        ("mlp", ("--gate", "checkpoint", "--threshold", 0), 16),
        ("mlp", ("--threshold", 1), 4),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_gates_and_policies(folder, tmp_path, checkpoint, options, tokens):
    options = ("--window", 64, "--stride", 64, *options)
    result = segment(folder, tmp_path, *options, checkpoint=f"{checkpoint}.safetensors", images=("astronaut",))
    assert result.exit_code == 0, result.output
    assert f"astronaut: {tokens} of 16 tokens; " in result.stdout


def test_a_run_brings_model_gate_policy_and_names(tmp_path, monkeypatch):
    model = randomise(msvit.create_model(TINY, num_classes=3, img_size=64, gate="fine"))
    run = SimpleNamespace(model=lambda: model, derived={"classes": [*NAMES[::2], "dog"]})
    monkeypatch.setattr(msvit.training, "load_run", lambda folder: run)
    result = call("segment", "astronaut", "-o", tmp_path / "out.png", "--run", "somewhere")
    assert result.exit_code == 0, result.output
    assert re.search(r"astronaut: 16 of 16 tokens; (sky|cat|dog) \d", result.stdout)
    result = call("segment", "astronaut", "-o", tmp_path / "out.png", "--run", "somewhere", "--gate", "coarse")
    assert "astronaut: 4 of 16 tokens" in result.stdout
    result = call("segment", "astronaut", "-o", tmp_path / "out.png", "--run", "somewhere", "--num-classes", 3)
    assert "--num-classes: expected only with --checkpoint" in result.stderr
    run.model = torch.nn.Identity
    result = call("segment", "astronaut", "-o", tmp_path / "out.png", "--run", "somewhere")
    assert "--run: expected a run of segmentation, got somewhere of another task" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--window", 100), "--window: model: cannot wrap a VisionTransformer with images of 100 pixels"),
        (("--window", 0), "--window: expected a positive number of pixels, got 0"),
        (("--window", 64, "--stride", 48), "--stride: expected a multiple of 32 pixels, at least 32, got 48"),
        (("--window", 64, "--stride", 96), "--stride: expected at most the window of 64 pixels, got 96"),
        (("--window", 64, "--size", 32), "--size: expected a multiple of 32 pixels, at least 64, got 32"),
        (("--window", 64, "--tokens", 20), "expected 4 (all coarse) to 16 (all fine), got 20"),
        (("--tokens", 10, "--threshold", 0.5), "expected at most one of them, got both"),
        (("--gate", "magic"), "--gate: expected one of entropy"),
        (("--width", -5), "--width: expected 1 pixel or more, got -5"),
        (("--gate", "checkpoint"), "--checkpoint: expected a checkpoint with a gate"),
        (("--num-classes", 5), "names.txt: expected 5 names, got 3"),
        (("--num-classes", 0), "--num-classes: expected 1 or more, got 0"),
        (("--model", "msvit_tiny_patch16_32_512"), "--model: expected a Segmenter such as"),
        (("--model", "msvit_seg_tiny_mask_patch16_32_512"), "it has a linear decoder, expected a mask decoder"),
        (("--checkpoint", "no.pt"), "no.pt: no such file"),
        (("--run", "somewhere"), "expected one of them"),
        (("--max-pixels", 1000, "--window", 64), "expected at most 1,000 pixels"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_errors_are_one_line(folder, tmp_path, options, words):
    result = segment(folder, tmp_path, *options)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_without_the_weights_of_a_decoder_nothing_is_drawn(folder, tmp_path):
    result = call("segment", "chelsea", "-o", tmp_path / "out.png")
    assert result.exit_code == 1
    assert "expected one of them, because the weights of a new model are random" in result.stderr
    result = segment(folder, tmp_path, checkpoint="encoder.safetensors")
    assert "encoder.safetensors: expected a Segmenter, got a checkpoint without a decoder" in result.stderr
