"""Values of a run: the recipes of appendix C, ranges and types."""

import dataclasses
import json
from typing import Any

import pytest

from msvit.training import PRESETS, Config, make_config
from msvit.training.config import TASKS

# Appendix C.1 and C.3, as printed.
VIT = {
    "batch_size": 512,
    "accumulate": 1,
    "epochs": 20,
    "optimizer": "momentum",
    "lr": 0.03,
    "momentum": 0.9,
    "clip_grad": 1.0,
    "weight_decay": 0.0,
    "warmup_epochs": 0.5,
    "schedule": "cosine",
    "gate_warmup_epochs": 6.0,
    "prior_temperature": 0.3,
    "hyperprior_std": 0.1,
}
# Appendix C.2: what differs.
DEIT = {**VIT, "optimizer": "adamw", "lr": 2e-5, "label_smoothing": 0.1, "clip_grad": None, "weight_decay": 1e-4}


@pytest.mark.parametrize(("preset", "values"), [("vit", VIT), ("deit", DEIT)])
def test_recipes_of_the_paper(preset: str, values: dict[str, Any]) -> None:
    config = make_config(preset).to_dict()
    assert {name: config[name] for name in values} == values


@pytest.mark.parametrize("preset", PRESETS)
def test_json_and_back(preset: str) -> None:
    config = make_config(preset, seed=7)
    assert config.preset == preset
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_every_value_has_a_text() -> None:
    for field in dataclasses.fields(Config):
        assert field.metadata["help"].endswith("."), field.name


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"gate_target": 0}, ValueError, r"--gate-target: expected a share inside \(0, 1\), got 0"),
        ({"gate_target": 1.0}, ValueError, "--gate-target: expected a share"),
        ({"epochs": 0}, ValueError, "--epochs: expected 1 or more, got 0"),
        ({"epochs": 1.5}, TypeError, "--epochs: expected int, got 1.5"),
        ({"lr": "fast"}, TypeError, "--lr: expected float or int, got 'fast'"),
        ({"lr": float("nan")}, ValueError, "--lr: expected a positive number"),
        ({"gate_weight": -1}, ValueError, "--gate-weight: expected 0 or more"),
        ({"label_smoothing": 1}, ValueError, r"--label-smoothing: expected a value in \[0, 1\)"),
        ({"seed": True}, TypeError, "--seed: expected int, got True"),
        ({"pretrained": 1}, TypeError, "--pretrained: expected bool, got 1"),
        ({"loss": "l1"}, ValueError, "--loss: expected one of gbas, bas, bas-flat, l0, none, got 'l1'"),
        ({"gate": "magic"}, ValueError, "--gate: expected one of learned"),
        ({"token_mode": "ragged"}, ValueError, "--token-mode: expected one of packed"),
        ({"batch_size": 9, "accumulate": 2}, ValueError, "--batch-size: expected a multiple of 2, got 9"),
        ({"prior_clip": 0.7}, ValueError, r"--prior-clip: expected a value inside \(0, 0.5\)"),
        ({"freeze": "backbone"}, ValueError, "--freeze backbone: expected --pretrained or"),
        ({"freeze": "backbone", "pretrained": True, "gate": "radial"}, ValueError, "expected --gate learned"),
        ({"gate": "radial", "gate_file": "x"}, ValueError, "--gate-file: expected --gate learned, got radial"),
    ],
)
def test_errors(values: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_config("digits", **values)


@pytest.mark.parametrize(
    ("preset", "values", "words"),
    [
        ("digits", {"decode": "grid"}, "--decode: expected --task segmentation, got classification"),
        ("digits", {"stride": 16}, "--stride: expected --task segmentation, got classification"),
        ("ade20k", {"label_smoothing": 0.1}, "--label-smoothing: expected --task classification, got segmentation"),
        ("ade20k", {"crops": "light"}, "--crops: expected --task classification, got segmentation"),
        ("ade20k", {"freeze": "none"}, "--freeze: expected gate for a learned gate in --task segmentation, got none"),
        ("ade20k", {"freeze": "backbone"}, "--freeze backbone: expected --task classification, got segmentation"),
        ("ade20k", {"window": 512, "stride": 513}, "--stride: expected at most the 512 pixels of a window, got 513"),
        ("ade20k", {"scale_min": 3.0}, "--scale-max: expected --scale-min or more, got 2.0"),
        ("ade20k", {"decoder": "unet"}, "--decoder: expected one of mask, linear, got 'unet'"),
        ("digits", {"task": "segmentation"}, "--preset: expected one of ade20k, digits-segmentation for --task seg"),
        ("ade20k", {"task": "classification"}, "--preset: expected one of vit, deit, digits, digits-large for --task"),
        (None, {"task": "detection"}, "--task: expected one of classification, segmentation, got 'detection'"),
    ],
    ids=str,
)
def test_values_of_another_task(preset: str | None, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_config(preset, **values)


def test_a_task_has_a_preset() -> None:
    assert [make_config(task=task).preset for task in TASKS] == ["vit", "ade20k"]
    assert make_config().preset == "vit"


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"--preset: expected one of vit, .*, digits-segmentation, got 'resnet'"):
        make_config("resnet")
    with pytest.raises(ValueError, match=r"config: .* got unknown colour"):
        Config.from_dict({"colour": 1})
