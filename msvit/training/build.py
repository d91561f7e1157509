"""Builds the model of a run: backbone, gate and policy from its configuration."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

import msvit
from msvit.gates import EntropyGate, MLPGate, RadialGate, RandomGate, load_gate
from msvit.models import MixedScaleVisionTransformer
from msvit.models.factory import pretrained_name
from msvit.tokens.policies import Budget
from msvit.training.checkpoints import MODEL_FILE, latest_checkpoint
from msvit.training.config import Config


def build_model(
    config: Config, num_classes: int, gate_setting: float | None = None, *, weights: bool = True
) -> MixedScaleVisionTransformer:
    """Makes the model of a run as it is before the first step.

    Args:
        config: values of the run.
        num_classes: number of outputs of the classifier.
        gate_setting: result of `calibrate` for a gate without learned parameters, None for the gate's default.
        weights: whether to load the weights that the run starts from; False if a checkpoint is loaded next.

    Returns:
        The model, on the CPU, in training mode, with the parameters that `config.freeze` names frozen.

    Raises:
        ValueError: the model is unknown, regions do not divide the image size, or the weights do not fit.
        FileNotFoundError: the checkpoint or the gate file does not exist.
    """
    kwargs: dict[str, Any] = {"num_classes": num_classes, "drop_path_rate": config.drop_path}
    for name, value in {
        "img_size": config.image_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
        "global_pool": config.global_pool,
    }.items():
        if value is not None:
            kwargs[name] = value
    for name, number in (("mean", config.pixel_mean), ("std", config.pixel_std)):
        if number is not None:
            kwargs[name] = (number,) * 3
    if config.global_pool is not None:
        kwargs["class_token"] = config.global_pool == "token"
    common: dict[str, Any] = {
        "pretrained": config.pretrained and weights,
        "token_mode": config.token_mode,
        "gate": _gate_name(config.gate),
    }
    try:
        if config.model.startswith("msvit_"):
            model = msvit.create_model(config.model, **common, **kwargs)
        else:
            model = msvit.from_timm(config.model, config.coarse, **common, **kwargs)
    except (TypeError, AssertionError, RuntimeError) as error:  # of timm and torch, for impossible sizes
        raise ValueError(f"--model {config.model}: {error}") from error
    if weights and config.checkpoint is not None:
        _load_weights(model, config)
    set_up_gate(model, config, gate_setting, config.gate_file if weights else None)
    if config.tokens_per_image is not None:
        model.policy = Budget(config.tokens_per_image, config.budget_per)
    _freeze(model, config)
    return model


def calibrate(config: Config, model: MixedScaleVisionTransformer, images: Callable[[], Tensor]) -> float | None:
    """Chooses the setting of a gate without learned parameters so that a share `gate_target` of regions is fine.

    Args:
        config: values of the run.
        model: model that was built without `gate_setting`.
        images: function that reads images, uint8 [n, 3, H, W]; only the entropy gate calls it.

    Returns:
        The radius of a radial gate, the probability of a random one or the threshold of an entropy gate in bits; None
        for other gates.
    """
    if config.gate == "random":
        return config.gate_target
    if config.gate == "radial":
        # The logits of a gate of radius 0 are negated distances; regions at the same distance become fine together.
        distances = -RadialGate(model.coarse, 0.0)(torch.empty(1, 3, *model.image_size, dtype=torch.uint8)).flatten()
        rings = torch.cat([distances.new_zeros(1), distances.unique()])
        radii = (rings + torch.cat([rings[1:], rings[-1:] + 1])) / 2
        shares = (distances < radii[:, None]).float().mean(1)
        return float(radii[(shares - config.gate_target).abs().argmin()])
    if config.gate == "entropy":
        bits = EntropyGate(model.coarse, threshold=0.0)(images()).flatten()
        return float(bits.quantile(1 - config.gate_target))
    return None


def _gate_name(gate: str) -> str:
    return "mlp" if gate == "learned" else gate


def set_up_gate(
    model: MixedScaleVisionTransformer, config: Config, setting: float | None, gate_file: str | None = None
) -> None:
    """Applies the configured temperature or the calibrated setting to the model's gate, or loads a gate file.

    Args:
        model: model whose gate is replaced.
        config: values of the run.
        setting: result of `calibrate`, None for the gate's default.
        gate_file: file that `msvit.gates.save_gate` wrote, for a learned gate; None for none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the gate in the file has another region size or layer width.
    """
    gate: Any = model.gate
    if isinstance(gate, MLPGate):
        if gate_file is not None:
            hidden = gate.fc2.in_features  # config.json stores no other width
            gate = load_gate(gate_file, grid_size=model.coarse_grid_size, mean=model.mean, std=model.std)
            if gate.coarse != model.coarse:
                raise ValueError(
                    f"--gate-file {gate_file}: expected a gate for regions of {model.coarse} pixels, "
                    f"got one for {gate.coarse}"
                )
            if gate.fc2.in_features != hidden:
                raise ValueError(
                    f"--gate-file {gate_file}: expected a gate with {hidden} hidden units, got {gate.fc2.in_features}"
                )
        gate.temperature = config.gate_temperature
    elif setting is not None and isinstance(gate, RadialGate):
        gate = RadialGate(model.coarse, setting)
    elif setting is not None and isinstance(gate, RandomGate):
        gate = RandomGate(model.coarse, setting, seed=config.seed)
    elif setting is not None and isinstance(gate, EntropyGate):
        threshold = min(max(setting, 0.0), math.log2(gate.bins))
        gate = EntropyGate(model.coarse, threshold=threshold, mean=model.mean, std=model.std)
    model.gate = gate


def _load_weights(model: MixedScaleVisionTransformer, config: Config) -> None:
    path = Path(str(config.checkpoint))
    if path.is_dir():
        path = latest_checkpoint(path).folder / MODEL_FILE
    missing = msvit.load_checkpoint(model, path, load_head=not config.new_head)
    if config.freeze == "gate" and config.gate_file is None and any(name.startswith("gate.") for name in missing):
        raise ValueError(f"--freeze gate: expected a trained gate, but {path} has none; see --gate-file")


def _freeze(model: MixedScaleVisionTransformer, config: Config) -> None:
    if config.freeze == "gate":
        model.gate.requires_grad_(False)
    if config.freeze == "backbone":
        trained = ("gate.", "head.") if _has_new_head(model, config) else ("gate.",)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(trained))


def _has_new_head(model: MixedScaleVisionTransformer, config: Config) -> bool:
    """Whether the classifier starts from random weights although the backbone does not."""
    if config.checkpoint is not None or not config.pretrained:
        return config.new_head
    weights: Any = timm.get_pretrained_cfg(pretrained_name(config.model))
    return bool(weights.num_classes != model.num_classes)


def set_training(model: MixedScaleVisionTransformer, config: Config) -> None:
    """Sets training mode, except for frozen parts: a frozen gate adds no noise, a frozen backbone drops no path."""
    model.train(config.freeze != "backbone")
    model.gate.train(config.trains_gate)
