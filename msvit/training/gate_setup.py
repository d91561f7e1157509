"""Sets up the gate of a model: calibrates gates that do not learn, and loads learned ones."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msvit.gates import EntropyGate, MLPGate, RadialGate, RandomGate, adapt_gate, load_gate
from msvit.models import MixedScaleVisionTransformer
from msvit.training.config import Config


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


def set_up_gate(
    model: MixedScaleVisionTransformer, config: Config, setting: float | None, gate_file: str | None = None
) -> None:
    """Applies the configured temperature or the calibrated setting to the model's gate, or loads a gate file.

    Args:
        model: model whose gate is replaced.
        config: values of the run.
        setting: result of `calibrate`, None for the gate's default.
        gate_file: file that `msvit.gates.save_gate` wrote, folder of a run, or checkpoint in it, for a learned gate;
            None for none.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: the file has no learned gate, or one of another region size or layer width.
    """
    gate: Any = model.gate
    if isinstance(gate, MLPGate):
        if gate_file is not None:
            hidden = gate.fc2.in_features  # config.json stores no other width
            gate = _read_gate(gate_file, model)
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


def _read_gate(path: str, model: MixedScaleVisionTransformer) -> MLPGate:
    """Reads a gate for the model's regions and normalisation."""
    from msvit.training.runs import learned_gate, run_folder  # it imports this module

    if run_folder(Path(path)) is None:
        return load_gate(path, model.coarse_grid_size, model.mean, model.std)
    return adapt_gate(learned_gate(Path(path)), model.coarse_grid_size, model.mean, model.std)
