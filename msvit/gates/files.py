"""Gates in separate files, for transfer to another backbone, image size or data set (section 4.1 of the paper)."""

import json
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from msvit.checkpoint import save_checkpoint
from msvit.checkpoint_files import metadata_object
from msvit.gates.arguments import GateArguments, checked_grid_size
from msvit.gates.base import check_normalisation
from msvit.gates.mlp import MLPGate
from msvit.tokens.policies import Policy, Threshold

_KIND = "msvit gate"


def save_gate(gate: MLPGate, path: str | os.PathLike[str]) -> None:
    """Writes the parameters and arguments of a learned gate to a file.

    Args:
        gate: learned gate, such as `model.gate`.
        path: safetensors file to write; its folder must exist.

    Raises:
        TypeError: `gate` is not an `MLPGate`.
        OSError: the file cannot be written.
    """
    if not isinstance(gate, MLPGate):
        raise TypeError(f"gate: expected an MLPGate, got {type(gate).__name__}")
    about = json.dumps(GateArguments.of(gate).to_dict())
    save_checkpoint(gate, path, metadata={"kind": _KIND, "gate": about})


def load_gate(
    path: str | os.PathLike[str],
    grid_size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> MLPGate:
    """Reads a gate that `save_gate` wrote.

    Args:
        path: safetensors file.
        grid_size: (Hc, Wc), regions of the images that the gate will get. The position encodings are resampled
            (bicubic) if the gate was trained on another grid. None for the gate's own grid.
        mean: three floats, per-channel mean of pixels in [0, 1], by which those images are normalised. If the gate was
            trained with other values, its first layer is adapted so that it decides as before. None for the gate's own.
        std: three floats, per-channel standard deviation, by which those images are normalised. None for the gate's
            own.

    Returns:
        The gate, on the CPU, in evaluation mode, for `create_model(..., gate=gate)` or `model.gate = gate`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or does not hold a gate; the message names it. Or only one of `mean` and `std`
            is given, they are not three finite numbers each, or a number of `std` is not above zero.
        TypeError, ValueError: `grid_size` is not a pair of positive ints.
    """
    check_normalisation(mean, std)
    grid = None if grid_size is None else checked_grid_size(grid_size)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"gate {path}: no such file")
    return _adapted(*_read(path), grid, mean, std)


def adapt_gate(
    gate: MLPGate, grid_size: tuple[int, int] | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> MLPGate:
    """Makes a copy of a gate for images of another size or normalisation, as `load_gate` does for a gate in a file.

    Args:
        gate: learned gate.
        grid_size: (Hc, Wc), as for `load_gate`.
        mean: three floats, as for `load_gate`.
        std: three floats, as for `load_gate`.

    Returns:
        The copy, on the CPU, in evaluation mode.

    Raises:
        TypeError: `gate` is not an `MLPGate`.
        TypeError, ValueError: `grid_size`, `mean` or `std` is invalid, as for `load_gate`.
    """
    if not isinstance(gate, MLPGate):
        raise TypeError(f"gate: expected an MLPGate, got {type(gate).__name__}")
    check_normalisation(mean, std)
    grid = None if grid_size is None else checked_grid_size(grid_size)
    state = {name: tensor.detach().cpu() for name, tensor in gate.state_dict().items()}
    return _adapted(GateArguments.of(gate), state, grid, mean, std)


def _adapted(
    about: GateArguments,
    state: dict[str, Tensor],
    grid: tuple[int, int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> MLPGate:
    if grid is not None and grid != about.grid_size:
        own = [*about.grid_size]
        state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [*grid], own, num_prefix_tokens=0)
        about = replace(about, grid_size=grid)
    if mean is not None and std is not None and about.mean is not None:
        _renormalise(state, (about.mean, about.std), (mean, std))
        about = replace(about, mean=[*mean], std=[*std])
    gate = MLPGate(**{field.name: getattr(about, field.name) for field in fields(about)})
    gate.load_state_dict(state)
    return gate.eval()


def _read(path: Path) -> tuple[GateArguments, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != _KIND:
                raise ValueError("expected a gate file; msvit.gates.save_gate(model.gate, path) writes one")
            about = GateArguments.from_dict(metadata_object(metadata, "gate"))
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about.check_state(state)
    except (SafetensorError, TypeError, ValueError, OverflowError, OSError) as error:
        raise ValueError(f"gate {path} cannot be read: {error}") from error
    return about, state


def _renormalise(state: dict[str, Tensor], old: Any, new: Any) -> None:
    """Changes the first layer from pixels (x - m) / s to (x - m') / s', in place: w' = w s'/s, b' += w (m' - m)/s."""
    (old_mean, old_std), (new_mean, new_std) = (
        [torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in pair] for pair in (old, new)
    )
    weight = state["fc1.weight"]
    state["fc1.bias"] = state["fc1.bias"] + (weight * ((new_mean - old_mean) / old_std)).sum((1, 2, 3))
    state["fc1.weight"] = weight * (new_std / old_std)


@torch.no_grad()
def agreement(
    gate_a: nn.Module, gate_b: nn.Module, images: Tensor, policy: Policy | None = None, scale_factor: int = 2
) -> float:
    """Computes the share of regions for which two gates choose the same scale (78.4 % and 87.1 % in section 4.1).

    Args:
        gate_a: module that maps images to logits [batch, Hc, Wc]; it runs in evaluation mode.
        gate_b: another such module for the same regions.
        images: [batch, 3, H, W], uint8, or floats normalised for both gates.
        policy: policy that turns logits into decisions, `Threshold(0.5)` by default.
        scale_factor: number of fine patches along one side of a region, `model.scale_factor`. It determines the number
            of fine regions under a `Budget`, and has no effect under a `Threshold`.

    Returns:
        A share in [0, 1].

    Raises:
        ValueError: the gates' regions differ, or there is no image.
    """
    decide = policy or Threshold()
    masks = []
    for gate in (gate_a, gate_b):
        was_training = gate.training
        try:
            logits = gate.eval()(images)
        finally:
            gate.train(was_training)
        masks.append(decide(logits, scale_factor).fine_mask)
    if masks[0].shape != masks[1].shape or not masks[0].numel():
        shapes = " and ".join(str([*mask.shape]) for mask in masks)
        raise ValueError(f"gate_a, gate_b: expected masks of the same shape with at least one region, got {shapes}")
    return float((masks[0] == masks[1]).float().mean())
