"""Saves safetensors checkpoints; loads them and all files that `torch.load(weights_only=True)` can read."""

import json
import math
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from safetensors.torch import save
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from msvit.checkpoint_files import SETTINGS, SHARED, read_state_dict, settings_of
from msvit_kernels.files import replacing

Tensors = dict[str, Tensor]


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Writes the model's state dict to a safetensors file atomically: a reader sees the old file or the new one.

    A tensor has several names if its module is registered in several places. It is stored once, under its first name,
    and `load_checkpoint` sets all of them. The norms' eps and the interpolation of position encodings of a
    `msvit.Segmenter` are stored too.

    Args:
        model: any module.
        path: file to write; its folder must exist.
        metadata: strings to store in the file, by name.

    Raises:
        OSError: the file cannot be written; an existing file stays unchanged.
    """
    state = model.state_dict()
    tensors, shared = _distinct(state)
    settings = settings_of(state)
    own = {name: json.dumps(value) for name, value in ((SHARED, shared), (SETTINGS, settings)) if value}
    with replacing(path) as temporary:
        # `save_file` would write a further hidden file, which nobody removes if the process is killed.
        temporary.write_bytes(save(tensors, metadata={"format": "pt", **(metadata or {}), **own}))


def _distinct(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a state dict on the CPU, each once and in its own memory; for every other name, the stored one."""
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    names: dict[Any, str] = {}
    storages = set()
    for name, tensor in state.items():
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        key = (*storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in names:
            shared[name] = names[key]
            continue
        names[key] = name
        on_cpu = tensor.detach().cpu().contiguous()
        # safetensors refuses tensors that overlap in part, such as a weight and one of its rows.
        tensors[name] = on_cpu.clone() if storage in storages else on_cpu
        storages.add(storage)
    return tensors, shared


def load_checkpoint(model: nn.Module, path: str | os.PathLike[str], *, load_head: bool = True) -> list[str]:
    """Loads a checkpoint of an msvit model or of the timm model that it wraps, without executing code.

    Position encodings are resampled if the image size differs (bicubic, as in timm). The gate, the policy and the
    reducers each keep their parameters if the checkpoint has none for them.

    A `msvit.Segmenter` also takes checkpoints of the original Segmenter repository and of mmsegmentation, whose norms'
    eps and interpolation it adopts, and checkpoints of its backbone alone, which leave its decoder as it is.

    Args:
        model: a result of `create_model` or `from_timm`, or a `Segmenter`.
        path: safetensors file, or `torch.save` file that loads with `weights_only=True`.
        load_head: whether to load the classifier or the decoder; False keeps the model's own.

    Returns:
        Names of the parameters that the checkpoint did not set. They belong to the gate, the policy, the reducers, the
        classifier or the decoder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or not a checkpoint, or its parameters do not fit the model; the message names
            them.
    """
    given = read_state_dict(Path(path))
    # A Segmenter brings its own conversion.
    convert = getattr(model, "convert_checkpoint", partial(convert_backbone, model))
    try:
        state, optional = convert(given, load_head)
        _check_fits(state, model, optional)
    # timm assumes a checkpoint of this model.
    except (RuntimeError, AssertionError, IndexError, ValueError) as error:
        raise ValueError(f"checkpoint {os.fspath(path)} does not fit the model: {error}") from error
    model.load_state_dict(state, strict=False)
    return sorted(optional)


def convert_backbone(model: nn.Module, given: Mapping[str, Tensor], load_head: bool) -> tuple[Tensors, set[str]]:
    """Converts a checkpoint for a mixed-scale backbone.

    Args:
        model: the backbone.
        given: tensors of the checkpoint by name.
        load_head: whether to keep the classifier's.

    Returns:
        Tensors by the names of the model, resampled to its sizes; and the names that may be missing among them.

    Raises:
        ValueError: the patch size differs, or the grid of position encodings is unknown.
        RuntimeError, AssertionError, IndexError: timm cannot convert the checkpoint.
    """
    check_patch_size(given, model)
    state = checkpoint_filter_fn(dict(given), cast(Any, model))
    if not load_head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    resample_gate_positions(state, model)
    optional = optional_names(state, model)
    if not load_head:
        optional |= {name for name in model.state_dict() if name.startswith("head.")}
    return state, optional


def optional_names(state: Mapping[str, Tensor], model: nn.Module) -> set[str]:
    """Names in a backbone of the parts that a checkpoint may lack as a whole, if it lacks them."""
    parts = {part for part in ("gate.", "policy.", "reducers.") if not any(name.startswith(part) for name in state)}
    return {name for name in model.state_dict() if name.startswith(tuple(parts))}


def check_patch_size(given: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raises ValueError if the patch sizes differ.

    timm would resample the patch embedding without an error, and the model would predict poorly.
    """
    own, other = (state.get("patch_embed.proj.weight") for state in (model.state_dict(), given))
    if own is not None and other is not None and other.ndim == 4 and other.shape[2:] != own.shape[2:]:
        sizes = [" x ".join(map(str, tensor.shape[2:])) for tensor in (other, own)]
        raise ValueError(f"it has patches of {sizes[0]} pixels, expected {sizes[1]}")


def resample_gate_positions(state: Tensors, model: nn.Module) -> None:
    """Resamples the gate's position encodings to the model's grid of regions, in place.

    A state dict has their number but not their grid; as in timm, it is assumed to be a square.
    """
    own = getattr(getattr(model, "gate", None), "pos_embed", None)
    given = state.get("gate.pos_embed")
    if own is None or given is None or given.ndim != 3 or given.shape[1] == own.shape[1]:
        return
    count = given.shape[1]
    if not count or math.isqrt(count) ** 2 != count:
        raise ValueError(
            f"expected gate.pos_embed for {own.shape[1]} regions or for a square number of regions, got {count}; a "
            "file of msvit.gates.save_gate stores the grid"
        )
    state["gate.pos_embed"] = resample_abs_pos_embed(
        given, [*cast(tuple[int, int], model.coarse_grid_size)], num_prefix_tokens=0
    )


def _check_fits(state: Tensors, model: nn.Module, optional: set[str]) -> None:
    own = model.state_dict()
    problems = []
    if missing := sorted(own.keys() - state.keys() - optional):
        problems.append(f"lacks {_some(missing)}")
    if unexpected := sorted(state.keys() - own.keys()):
        problems.append(f"has {_some(unexpected)}, which the model lacks")
    for name in sorted(own.keys() & state.keys()):
        if own[name].shape != state[name].shape:
            hint = "; load_head=False keeps the model's own" if name.startswith("head.") else ""
            problems.append(f"has {name} of shape {[*state[name].shape]}, expected {[*own[name].shape]}{hint}")
    if problems:
        raise ValueError(f"it {'; it '.join(problems[:5])}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
