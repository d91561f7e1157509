"""The checks of a run's values; messages name a value as on the command line: `--gate-target: expected ...`."""

import dataclasses
import math
import typing
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msvit.training.config import Config


def check_config(config: "Config") -> None:
    """Checks the type and the range of every value, and which values go together.

    Raises:
        ValueError: a value is out of range, or two values contradict each other.
        TypeError: a value has the wrong type.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        _check_type(field.name, getattr(config, field.name), hints[field.name])
        _expect(field.name, config, field.metadata["choices"])
    _check_ranges(config)
    _check_task(config)
    _check_combinations(config)


def flag(name: str) -> str:
    """The command-line option of a value, such as "--gate-target"."""
    return "--" + name.replace("_", "-")


def _check_ranges(config: "Config") -> None:
    for name in ("epochs", "batch_size", "accumulate", "train_size", "test_size", "max_pixels", "decoder_depth"):
        _require(name, config, getattr(config, name) >= 1, "1 or more")
    for name in (
        "image_size",
        "coarse",
        "embed_dim",
        "depth",
        "num_heads",
        "num_classes",
        "checkpoint_steps",
        "window",
        "stride",
    ):
        _require(name, config, getattr(config, name) is None or getattr(config, name) >= 1, "1 or more")
    for name in ("lr", "gate_temperature", "prior_temperature", "hyperprior_std", "scale_min", "decay_rate"):
        _require(name, config, 0 < getattr(config, name) < math.inf, "a positive number")
    for name in ("gate_weight", "gate_warmup_epochs", "warmup_epochs", "weight_decay", "color_jitter", "min_lr"):
        _require(name, config, 0 <= getattr(config, name) < math.inf, "0 or more")
    for name in ("gate_delay_epochs", "gate_lr_scale", "prior_lr_scale", "num_workers", "seed", "data_seed"):
        _require(name, config, 0 <= getattr(config, name) < math.inf, "0 or more")
    for name in ("momentum", "label_smoothing", "drop_path", "decoder_dropout"):
        _require(name, config, 0 <= getattr(config, name) < 1, "a value in [0, 1)")
    _require("mlp_ratio", config, config.mlp_ratio is None or 0 < config.mlp_ratio < math.inf, "a positive number")
    _require("pixel_mean", config, config.pixel_mean is None or 0 <= config.pixel_mean <= 1, "a value in [0, 1]")
    _require("pixel_std", config, config.pixel_std is None or 0 < config.pixel_std < math.inf, "a positive number")
    _require("flip", config, 0 <= config.flip <= 1, "a probability in [0, 1]")
    _require("gate_target", config, 0 < config.gate_target < 1, "a share inside (0, 1)")
    _require("clip_grad", config, config.clip_grad is None or config.clip_grad >= 0, "0 or more")
    _require("clip_gate_grad", config, config.clip_gate_grad is None or config.clip_gate_grad >= 0, "0 or more")
    _require("prior_clip", config, config.prior_clip is None or 0 < config.prior_clip < 0.5, "a value inside (0, 0.5)")
    _require("scale_max", config, config.scale_min <= config.scale_max < math.inf, "--scale-min or more")
    _require("batch_size", config, config.batch_size % config.accumulate == 0, f"a multiple of {config.accumulate}")


def _check_task(config: "Config") -> None:
    """Raises ValueError if a value that does not apply to the task differs from its default."""
    for field in dataclasses.fields(config):
        only, value = field.metadata["only"], getattr(config, field.name)
        if only not in (None, config.task) and value != field.default:
            raise ValueError(f"{flag(field.name)}: expected --task {only}, got {config.task}")
    if config.task == "segmentation" and config.freeze == "backbone":
        raise ValueError("--freeze backbone: expected --task classification, got segmentation")
    if config.task == "segmentation" and config.gate == "learned" and config.freeze != "gate":
        raise ValueError(f"--freeze: expected gate for a learned gate in --task segmentation, got {config.freeze}")
    window = config.window or config.image_size
    if config.stride is not None and window is not None and config.stride > window:
        raise ValueError(f"--stride: expected at most the {window} pixels of a window, got {config.stride}")


def _check_combinations(config: "Config") -> None:
    if config.freeze == "backbone" and not (config.pretrained or config.checkpoint):
        raise ValueError("--freeze backbone: expected --pretrained or --checkpoint for a trained backbone, got neither")
    if config.freeze == "backbone" and config.gate != "learned":
        raise ValueError(f"--freeze backbone: expected --gate learned, got {config.gate}; nothing would be trained")
    if config.gate_file is not None and config.gate != "learned":
        raise ValueError(f"--gate-file: expected --gate learned, got {config.gate}")
    if config.budget_per == "image" and config.tokens_per_image is None:
        raise ValueError("--budget-per image: expected --tokens-per-image for a budget, got none")


def _check_type(name: str, value: Any, hint: Any) -> None:
    allowed = typing.get_args(hint) or (hint,)
    if float in allowed:
        allowed = (*allowed, int)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = " or ".join(kind.__name__ for kind in allowed if kind is not type(None))
        raise TypeError(f"{flag(name)}: expected {names}, got {value!r}")


def _expect(name: str, config: "Config", choices: tuple[str, ...] | None) -> None:
    value = getattr(config, name)
    if choices is not None and value is not None and value not in choices:
        raise ValueError(f"{flag(name)}: expected one of {', '.join(choices)}, got {value!r}")


def _require(name: str, config: "Config", holds: bool, expected: str) -> None:
    if not holds:
        raise ValueError(f"{flag(name)}: expected {expected}, got {getattr(config, name)}")
