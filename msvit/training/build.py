"""Builds the model of a run: backbone, gate and policy from its configuration."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm

import msvit
from msvit.models.factory import pretrained_name
from msvit.tokens.policies import Budget
from msvit.training.checkpoints import MODEL_FILE, latest_checkpoint
from msvit.training.config import Config
from msvit.training.gate_setup import set_up_gate
from msvit.training.tasks import task_of


def build_model(config: Config, num_classes: int, gate_setting: float | None = None, *, weights: bool = True) -> Any:
    """Makes the model of a run as it is before the first step.

    Args:
        config: values of the run.
        num_classes: number of classes.
        gate_setting: result of `calibrate` for a gate without learned parameters, None for the gate's default.
        weights: whether to load the weights that the run starts from; False if a checkpoint is loaded next.

    Returns:
        The model of the task, on the CPU, in training mode, with the parameters that `config.freeze` names frozen.

    Raises:
        ValueError: the model is unknown, regions do not divide the image size, or the weights do not fit.
        FileNotFoundError: the checkpoint or the gate file does not exist.
    """
    task = task_of(config)
    model = task.make_model(num_classes, pretrained=config.pretrained and weights)
    if weights and config.checkpoint is not None:
        _load_weights(model, config)
    backbone = task.backbone(model)
    set_up_gate(backbone, config, gate_setting, config.gate_file if weights else None)
    if config.tokens_per_image is not None:
        backbone.policy = Budget(config.tokens_per_image, config.budget_per)
    _freeze(model, config)
    return model


def _load_weights(model: Any, config: Config) -> None:
    path = Path(str(config.checkpoint))
    if path.is_dir():
        path = latest_checkpoint(path).folder / MODEL_FILE
    missing = msvit.load_checkpoint(model, path, load_head=not config.new_head)
    if config.freeze == "gate" and config.gate_file is None and lacks_gate(missing):
        raise ValueError(f"--freeze gate: expected a trained gate, but {path} has none; see --gate-file")


def lacks_gate(missing: Iterable[str]) -> bool:
    """Whether a checkpoint has no gate, from the names of the parameters that it did not set."""
    return any(name.removeprefix("encoder.").startswith("gate.") for name in missing)


def _freeze(model: Any, config: Config) -> None:
    if config.freeze == "gate":
        model.gate.requires_grad_(False)
    if config.freeze == "backbone":
        trained = ("gate.", "head.") if _has_new_head(model, config) else ("gate.",)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(trained))


def _has_new_head(model: Any, config: Config) -> bool:
    """Whether the classifier starts from random weights although the backbone does not."""
    if config.checkpoint is not None or not config.pretrained:
        return config.new_head
    weights: Any = timm.get_pretrained_cfg(pretrained_name(config.model))
    return bool(weights.num_classes != model.num_classes)


def set_training(model: Any, config: Config) -> None:
    """Sets training mode, except for frozen parts: a frozen gate adds no noise, a frozen backbone drops no path."""
    model.train(config.freeze != "backbone")
    model.gate.train(config.trains_gate)
