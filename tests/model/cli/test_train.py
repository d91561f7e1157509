"""`msvit train` and `msvit eval`: their output, their files, and their one-line errors."""

import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

import msvit
from msvit.cli import app
from msvit.gates import save_gate
from msvit.training import load_run
from tests.model.training.run_helpers import SEGMENTATION, SMALL, image_folder, metrics_of, paired_folders

PATCHES = "msvit_tiny_patch8_16_32"


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def options(**values: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in {**SMALL, **values}.items()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = call("train", "--preset", "digits", *options(gate_weight=1), "-o", folder)
    assert result.exit_code == 0, result.output
    assert re.search(r"epoch 2/2 .* top-1 .*tokens/image .*images/s", result.output)
    assert f"msvit eval {folder}" in result.output
    return folder


def test_train_stores_what_was_given(run: Path) -> None:
    config = load_run(run).config
    assert (config.preset, config.gate_weight, config.embed_dim, config.lr) == ("digits", 1, 32, 1e-3)


def test_resume(run: Path, tmp_path: Path) -> None:
    before = metrics_of(load_run(run))
    result = call("train", "--resume", run)
    assert result.exit_code == 0, result.output
    assert metrics_of(load_run(run)) == before


def test_eval_of_a_run_and_of_its_checkpoint(run: Path) -> None:
    row = load_run(run).metrics[-1]
    last = run / "checkpoints" / "step-00000008" / "model.safetensors"
    for path in (run, last):
        result = call("eval", path)
        assert result.exit_code == 0, result.output
        assert f"{last}: top-1 {row['top1']:.2%}, top-5 {row['top5']:.2%}" in result.output
        assert f"{row['tokens_per_image']:.1f} tokens/image" in result.output
        assert f"{row['gmacs']:.3f} GMACs/image, 40 images, 0 left out" in result.output
    first = call("eval", run / "checkpoints" / "step-00000004" / "model.safetensors")
    assert f"top-1 {load_run(run).metrics[0]['top1']:.2%}" in first.output
    assert "7.0 tokens/image" in call("eval", run, "--tokens-per-image", 7).output
    # The budget of a batch pays for a fine region in every other image, that of an image for none.
    assert "4.0 tokens/image" in call("eval", run, "--tokens-per-image", 5.5, "--budget-per", "image").output


def test_eval_of_a_file_of_its_own_on_a_folder(tmp_path: Path) -> None:
    """Includes top-5 with two classes."""
    data = image_folder(tmp_path / "data")
    (data / "val" / "cat" / "0.png").write_bytes(b"nothing")
    model = msvit.create_model(PATCHES, embed_dim=32, depth=1, num_heads=2, num_classes=2)
    msvit.save_checkpoint(model, tmp_path / "model.safetensors")
    sizes = ["--model", PATCHES, "--embed-dim", 32, "--depth", 1, "--num-heads", 2, "--num-workers", 0]
    result = call("eval", tmp_path / "model.safetensors", "--data", data, *sizes)
    assert result.exit_code == 0, result.output
    assert "top-5 100.00%" in result.output
    assert "16.0 tokens/image (100.0% of the regions fine)" in result.output
    assert "7 images, 1 left out" in result.output
    assert "warning: left out: " in result.stderr
    assert "val/cat/0.png: not a readable image" in result.stderr


def test_gate_of_one_run_in_another(run: Path, tmp_path: Path) -> None:
    """The gate is moved to a larger image size and frozen."""
    save_gate(load_run(run).model().gate, tmp_path / "gate.safetensors")
    values = options(image_size=64, gate_file=tmp_path / "gate.safetensors", freeze="gate", epochs=1)
    result = call("train", "--preset", "digits", *values, "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert load_run(tmp_path / "run").model().gate.grid_size == (4, 4)


def test_segmentation_of_folders(tmp_path: Path) -> None:
    sizes = {name: SEGMENTATION[name] for name in ("image_size", "embed_dim", "depth", "num_heads")}
    values = {**sizes, "model": "msvit_seg_tiny_mask_patch8_16_32", "gate": "radial", "batch_size": 3, "num_workers": 0}
    given = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    data = paired_folders(tmp_path / "data")
    result = call("train", "--task", "segmentation", "--data", data, *given, "--epochs", 1, "-o", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert re.search(r"epoch 1/1 .* mIoU .*tokens/image", result.output)
    assert "--preset ade20k: expected a trained backbone" in result.stderr
    run = load_run(tmp_path / "run")
    assert (run.config.preset, run.derived["classes"]) == ("ade20k", ["cat", "dog"])
    result = call("eval", tmp_path / "run", "--stride", 16)
    assert re.search(r"mIoU .*, pixel accuracy .* tokens/window .* GMACs/window, 3 images, 0 left out", result.output)
    result = call("train", "--task", "segmentation", "--data", data, "-o", tmp_path / "none")
    assert "--freeze gate: expected --gate-file or --checkpoint" in result.stderr


def test_help_names_what_a_newcomer_needs() -> None:
    result = call("train", "--help")
    assert result.exit_code == 0
    for word in ("--preset", "--data", "--gate-target", "--gate-weight", "--resume", "--output", "--epochs"):
        assert word in result.output
    assert "CHECKPOINT_OR_RUN" in call("eval", "--help").output
    assert {"train", "eval", "tokens", "info"} <= set(call("--help").output.split())


@pytest.fixture
def broken_folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    return tmp_path / "images"


ERRORS = [
    pytest.param(["--data", "nowhere"], "name such as hfds/cifar10, got nowhere", id="missing-folder"),
    pytest.param(["--data", "."], "expected a folder named train or training in it, got none", id="no-train"),
    pytest.param(
        ["--data", "wds/x", "--data-root", "nowhere"], "--data wds/x, split train: cannot be read", id="no-data"
    ),
    pytest.param(["--model", "resnet50"], "--model resnet50: ResNet", id="model-of-another-class"),
    pytest.param(["--model", "vit_giga"], "no model named 'vit_giga'", id="unknown-model"),
    pytest.param(["--model", "msvit_huge_patch16_32_224"], "expected msvit_{tiny,small", id="unknown-size"),
    pytest.param(["--gate-target", 0], "--gate-target: expected a share inside (0, 1), got 0", id="target-0"),
    pytest.param(["--gate-target", 1.2], "--gate-target: expected a share inside (0, 1), got 1.2", id="target-1.2"),
    pytest.param(["--image-size", 100], "coarse=16, which does not divide them; use img_size=96 or 112", id="size"),
    pytest.param(["--tokens-per-image", 1000], "tokens_per_image: expected 4 (all coarse) to 16", id="budget"),
    pytest.param(["--budget-per", "image"], "--budget-per image: expected --tokens-per-image", id="budget-per"),
    pytest.param(["--checkpoint", "none.safetensors"], "none.safetensors: no such file", id="no-checkpoint"),
    pytest.param(["--gate-file", "none.safetensors"], "none.safetensors: no such file", id="no-gate-file"),
    pytest.param(["--batch-size", 100], "--batch-size: expected at most the 64 training images", id="batch-size"),
    pytest.param(["--optimizer", "magic"], "--optimizer magic: ", id="optimizer"),
    pytest.param(["--schedule", "magic"], "--schedule magic: ", id="schedule"),
    pytest.param(["--preset", "magic"], "--preset: expected one of vit, deit, digits", id="preset"),
    pytest.param(["--num-heads", 3], "--model msvit_tiny_patch8_16_80: ", id="odd-heads"),
    pytest.param(["--mlp-ratio", -1], "--mlp-ratio: expected a positive number, got -1", id="mlp-ratio"),
    pytest.param(["--global-pool", "max"], "--global-pool: expected one of token, avg, map, got 'max'", id="pool"),
    pytest.param(
        ["--num-classes", 5], "--num-classes: expected at least the 10 classes of digits, got 5", id="classes"
    ),
    pytest.param(["--freeze", "gate"], "--freeze gate: expected --gate-file or --checkpoint", id="frozen-gate"),
    pytest.param(["--embed-dim", 30], "head_dim 15; expected a multiple of 8", id="heads-that-do-not-divide"),
]


@pytest.mark.parametrize(("arguments", "words"), ERRORS)
def test_errors_are_one_line(tmp_path: Path, arguments: list[Any], words: str) -> None:
    result = call("train", "--preset", "digits", *options(), "-o", tmp_path / "run", *arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_checkpoint_of_another_model(run: Path, tmp_path: Path) -> None:
    msvit.save_checkpoint(msvit.create_model(PATCHES, num_classes=10), tmp_path / "other.safetensors")
    for command in (
        ["train", "--preset", "digits", *options(checkpoint=tmp_path / "other.safetensors"), "-o", tmp_path / "run"],
        ["eval", tmp_path / "other.safetensors", "--preset", "digits", *options()[:4]],
    ):
        result = call(*command)
        assert (result.exit_code, "does not fit the model" in result.stderr) == (1, True), result.output


def test_checkpoint_with_a_class_token_or_other_patches(run: Path, tmp_path: Path) -> None:
    """What timm's filter of state dicts stumbles over, or would resample."""
    weights = run / "checkpoints" / "step-00000008" / "model.safetensors"
    shutil.copy(weights, tmp_path / "model.safetensors")
    file = tmp_path / "model.safetensors"
    for command in (
        ["train", "--preset", "digits", *options(checkpoint=run, global_pool="token"), "-o", tmp_path / "run"],
        ["eval", file, "--preset", "digits", *options(global_pool="token")[:4], "--global-pool", "token"],
        ["eval", file, "--preset", "digits", *options()[:4], "--model", "msvit_tiny_patch16_32_32"],
        ["tokens", "astronaut", "--gate", "checkpoint", "--checkpoint", file, "-o", tmp_path / "tokens.png"],
    ):
        result = call(*command)
        assert (result.exit_code, "does not fit the model" in result.stderr) == (1, True), result.output
        assert result.stderr.count("\n") == 1


def test_eval_of_a_file_asks_for_the_gate_that_it_had(run: Path, tmp_path: Path) -> None:
    trained = tmp_path / "coarse"
    assert call("train", "--preset", "digits", *options(gate="coarse"), "-o", trained).exit_code == 0
    shutil.copy(load_run(trained).checkpoint().folder / "model.safetensors", tmp_path / "model.safetensors")
    command = ["eval", tmp_path / "model.safetensors", "--preset", "digits", *options()[:4], "--pixel-mean", 0.5]
    command += ["--pixel-std", 0.5, "--test-size", 40, "--batch-size", 16]
    result = call(*command)
    assert (result.exit_code, "expected a checkpoint with a gate, got one without" in result.stderr) == (1, True)
    row = load_run(trained).metrics[-1]
    result = call(*command, "--gate", "coarse")
    assert f"top-1 {row['top1']:.2%}" in result.output
    assert "4.0 tokens/image" in result.output
    result = call(*command, "--gate", "radial", "--gate-target", 0.9)
    assert "16.0 tokens/image" in result.output, "all four regions are as far from the centre"
    save_gate(load_run(run).model().gate, tmp_path / "gate.safetensors")
    share = load_run(run).metrics[-1]["fine_share"]
    assert f"({share:.1%} of the regions fine)" in call(*command, "--gate-file", tmp_path / "gate.safetensors").output


def test_checkpoint_with_another_number_of_classes(tmp_path: Path) -> None:
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "global_pool": "avg", "class_token": False}
    msvit.save_checkpoint(msvit.create_model(PATCHES, num_classes=7, **sizes), tmp_path / "seven.safetensors")
    command = ["train", "--preset", "digits", *options(checkpoint=tmp_path / "seven.safetensors", epochs=1)]
    result = call(*command, "-o", tmp_path / "run")
    assert (result.exit_code, "head.weight of shape [7, 32]" in result.stderr) == (1, True), result.output
    assert call(*command, "--new-head", "-o", tmp_path / "run").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--resume", "nowhere"], "nowhere: expected the folder of a run, got no such path"),
        (["train", "--resume", "RUN", "--epochs", 3], "--resume: expected no other option, got --epochs"),
        (["train", "--preset", "digits", *options(), "-o", "RUN"], "got a run; --resume"),
        (["eval", "nowhere"], "nowhere: expected a checkpoint or the folder of a run"),
        (["eval", "RUN", "--preset", "vit"], "--preset: "),
        (["eval", "."], "expected the folder of a run, got a folder without config.json"),
        (["eval", "RUN/config.json", "--preset", "digits"], "cannot be read; it is damaged or not a checkpoint"),
    ],
)
def test_errors_with_runs(run: Path, arguments: list[Any], words: str) -> None:
    result = call(*(str(argument).replace("RUN", str(run)) for argument in arguments))
    assert result.exit_code == 1, result.output
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_damaged_config(run: Path, tmp_path: Path) -> None:
    stored = (run / "config.json").read_text()
    lacking = json.dumps({name: value for name, value in json.loads(stored).items() if name != "gate_setting"})
    for text, words in ((stored[:100], "cannot be read"), (lacking, "it lacks gate_setting")):
        (tmp_path / "config.json").write_text(text)
        for command in (["eval", tmp_path], ["train", "--resume", tmp_path]):
            result = call(*command)
            assert result.exit_code == 1
            assert f"config.json: cannot be read ({words}" in result.stderr or words == "cannot be read"
            assert "config.json: cannot be read" in result.stderr


def test_warnings(tmp_path: Path) -> None:
    sizes = options(model=PATCHES, global_pool="avg", epochs=1)
    result = call(
        "train", "--preset", "deit", "--data", "digits", *sizes, "--gate-delay-epochs", 1, "-o", tmp_path / "a"
    )
    assert result.exit_code == 0, result.output
    assert "warning: --gate-delay-epochs: expected less than the 1 epochs of the run, got 1" in result.stderr
    assert "warning: --preset deit: expected a trained backbone" in result.stderr


def test_out_of_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr("msvit.training.start_run", fail)
    result = call("train", "--preset", "digits", "-o", tmp_path / "run")
    assert (result.exit_code, result.stderr) == (1, "error: CUDA out of memory. Tried to allocate 20 GiB\n")


def test_python_m_msvit(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun starts this module."""
    monkeypatch.setattr(sys, "argv", ["msvit", "info"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("msvit", run_name="__main__")
    assert caught.value.code == 0
