"""The `msvit` command: its output, its files, and its one-line errors."""

import re

import pytest
from PIL import Image
from typer.testing import CliRunner

import msvit
from msvit.cli import app
from msvit.data import sample_photographs
from msvit_kernels import explain


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_info_prints_what_explain_knows():
    result = call("info")
    assert result.exit_code == 0
    assert result.stdout.strip() == explain().strip()


def test_tokens_writes_a_picture_and_prints_counts(tmp_path):
    result = call("tokens", "astronaut", sample_photographs()["coffee"], "-o", tmp_path / "out.png", "--width", 140)
    assert result.exit_code == 0, result.output
    counts = [int(count) for count in re.findall(r": (\d+) of 196 tokens\n", result.stdout)]
    assert len(counts) == 2
    assert counts[0] > counts[1], "the busier picture gets more tokens"
    assert f"on average: {sum(counts) / 2:.1f} of 196" in result.stdout
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width >= 280


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        (("--tokens", 49), 49),
        (("--tokens", 196), 196),
        (("--threshold", 0), 196),
        (("--threshold", 1), 49),
        (("--gate", "random", "--tokens", 100), 100),
        (("--gate", "radial", "--tokens", 100), 100),
        (("--gate", "coarse", "--threshold", 0.5), 49),
        (("--size", 384, "--tokens", 300), 300),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_token_counts(tmp_path, options, tokens):
    result = call("tokens", "chelsea", "-o", tmp_path / "out.png", *options)
    assert result.exit_code == 0, result.output
    assert f"chelsea: {tokens} of" in result.stdout


def test_learned_gate_of_a_checkpoint(tmp_path):
    model = msvit.create_model("msvit_tiny_patch16_32_224", num_classes=7)
    msvit.save_checkpoint(model, tmp_path / "model.safetensors")
    options = ("--gate", "checkpoint", "--checkpoint", tmp_path / "model.safetensors")
    options += ("--model", "msvit_tiny_patch16_32_224", "--threshold", 0.5)
    result = call("tokens", "chelsea", "-o", tmp_path / "out.png", *options)
    assert result.exit_code == 0, result.output
    assert "chelsea: 196 of 196" in result.stdout, "a new gate makes everything fine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("nothing",), "nothing: expected an image file or one of the photographs astronaut"),
        (("chelsea", "--tokens", 20), "expected 49 (all coarse) to 196 (all fine), got 20"),
        (("chelsea", "--tokens", 100, "--threshold", 0.5), "expected at most one of them, got both"),
        (("chelsea", "--threshold", 2), "expected a value in [0, 1]"),
        (("chelsea", "--size", 100), "--size: expected a multiple of 32"),
        (("chelsea", "--gate", "magic"), "--gate: expected one of entropy"),
        (("chelsea", "--gate", "checkpoint"), "expected both or neither"),
        (("chelsea", "--gate", "checkpoint", "--checkpoint", "no.pt"), "no.pt: no such file"),
        (("chelsea", "--max-pixels", 1000), "chelsea.png: expected at most 1,000 pixels, got 451 x 300 = 135,300"),
        (("chelsea", "--width", 10), "width: expected at least"),
        (("chelsea", "--width", 0), "--width: expected 1 pixel or more, got 0"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_errors_are_one_line(tmp_path, options, words):
    result = call("tokens", *options, "-o", tmp_path / "out.png")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_damaged_image_and_wrong_output(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    result = call("tokens", tmp_path / "bad.png", "-o", tmp_path / "out.png")
    assert (result.exit_code, "bad.png: not a readable image" in result.stderr) == (1, True)
    for output, words in (("out.xyz", "--output: expected the suffix"), ("no/out.png", "in an existing folder, got")):
        result = call("tokens", "chelsea", "-o", tmp_path / output)
        assert (result.exit_code, words in result.stderr) == (1, True)


def test_usage_errors_exit_with_two():
    assert call("tokens").exit_code == 2
    assert call("tokens", "chelsea").exit_code == 2
    assert call("nonsense").exit_code == 2
