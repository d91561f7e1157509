"""Saves safetensors checkpoints; loads them and all files that `torch.load(weights_only=True)` can read."""

import json
import math
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from msvit_kernels.files import replacing

# Keys under which training scripts store the weights in a checkpoint, averaged weights first.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
# Metadata entry: JSON that maps every further name of a tensor to the name under which it is stored.
_SHARED = "msvit_shared"


def save_checkpoint(model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Writes the model's state dict to a safetensors file atomically: a reader sees the old file or the new one.

    A tensor has several names if its module is registered in several places. It is stored once, under its first name,
    and `load_checkpoint` sets all of them.

    Args:
        model: any module.
        path: file to write; its folder must exist.
        metadata: strings to store in the file, by name.

    Raises:
        OSError: the file cannot be written; an existing file stays unchanged.
    """
    tensors, shared = _distinct(model.state_dict())
    about = {"format": "pt", **(metadata or {}), **({_SHARED: json.dumps(shared)} if shared else {})}
    with replacing(path) as temporary:
        # `save_file` would write a further hidden file, which nobody removes if the process is killed.
        temporary.write_bytes(save(tensors, metadata=about))


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
    """Loads a checkpoint of an msvit model or of the timm model that it wraps.

    Position encodings are resampled if the image size differs (bicubic, as in timm). The gate, the policy and the
    reducers each keep their parameters if the checkpoint has none for them.

    Args:
        model: a result of `create_model` or `from_timm`.
        path: safetensors file, or `torch.save` file that loads with `weights_only=True`.
        load_head: whether to load the classifier; False keeps the model's own.

    Returns:
        Names of the parameters that the checkpoint did not set. They belong to the gate, the policy, the reducers or
        the classifier.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or not a checkpoint, or its parameters do not fit the model; the message names
            them.
    """
    given = _read_state_dict(Path(path))
    _check_patch_size(given, model, path)
    try:
        state = checkpoint_filter_fn(given, cast(Any, model))
    except (RuntimeError, AssertionError, IndexError) as error:  # timm assumes a checkpoint of this model
        raise ValueError(f"checkpoint {os.fspath(path)} does not fit the model: {error}") from error
    if not load_head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    _resample_gate_positions(state, model, path)
    optional = {name for name in model.state_dict() if _is_optional(name, state, load_head)}
    _check_fits(state, model, optional, path)
    model.load_state_dict(state, strict=False)
    return sorted(optional)


def _is_optional(name: str, state: Mapping[str, Tensor], load_head: bool) -> bool:
    for part in ("gate.", "policy.", "reducers."):
        if name.startswith(part):
            return not any(key.startswith(part) for key in state)
    return name.startswith("head.") and not load_head


def _check_patch_size(given: Mapping[str, Tensor], model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Raises ValueError if the patch sizes differ.

    timm would resample the patch embedding without an error, and the model would predict poorly.
    """
    own, other = (state.get("patch_embed.proj.weight") for state in (model.state_dict(), given))
    if own is not None and other is not None and other.ndim == 4 and other.shape[2:] != own.shape[2:]:
        sizes = [" x ".join(map(str, tensor.shape[2:])) for tensor in (other, own)]
        raise ValueError(
            f"checkpoint {os.fspath(path)} does not fit the model: it has patches of {sizes[0]} pixels, "
            f"expected {sizes[1]}"
        )


def _check_fits(
    state: Mapping[str, Tensor], model: nn.Module, optional: set[str], path: str | os.PathLike[str]
) -> None:
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
        raise ValueError(f"checkpoint {os.fspath(path)} does not fit the model: it {'; it '.join(problems[:5])}")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    try:
        state = _read(path)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"checkpoint {path} cannot be read; it is damaged or not a checkpoint: {error}") from error
    for key in _NESTED:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"checkpoint {path}: expected a state dict, got {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"checkpoint {path}: expected tensors by name, got {type(tensor).__name__} for {name!r}")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _read(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with the length of its header, in eight bytes, and the header, in JSON.
    if start[8:] == b"{":
        return _read_safetensors(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        shared = metadata_object(metadata, _SHARED) if _SHARED in metadata else {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, stored in shared.items():
        if name in tensors or not isinstance(stored, str) or stored not in tensors:
            raise ValueError(f"metadata {_SHARED}: expected further names of stored tensors, got {name!r}: {stored!r}")
    return tensors | {name: tensors[stored] for name, stored in shared.items()}


def metadata_object(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """Parses an entry of a file's metadata.

    Args:
        metadata: strings by name, as a safetensors file stores them.
        name: name of the entry.

    Returns:
        The JSON object in that entry.

    Raises:
        ValueError: there is no such entry, or it is not a JSON object.
    """
    text = metadata.get(name, "")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # json recurses at each bracket
        raise ValueError(f"metadata {name}: expected a JSON object, got {_short(text)}") from error
    if not isinstance(value, dict):
        raise ValueError(f"metadata {name}: expected a JSON object, got {_short(text)}")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _resample_gate_positions(state: dict[str, Tensor], model: nn.Module, path: str | os.PathLike[str]) -> None:
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
            f"checkpoint {os.fspath(path)} does not fit the model: expected gate.pos_embed for {own.shape[1]} regions "
            f"or for a square number of regions, got {count}; a file of msvit.gates.save_gate stores the grid"
        )
    state["gate.pos_embed"] = resample_abs_pos_embed(
        given, [*cast(tuple[int, int], model.coarse_grid_size)], num_prefix_tokens=0
    )
