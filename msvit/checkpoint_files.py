"""Reads state dicts from safetensors files and from all files that `torch.load(weights_only=True)` can read."""

import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# Keys under which training scripts store the weights in a checkpoint, averaged weights first.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")
# Metadata entry: JSON that maps every further name of a tensor to the name under which it is stored.
SHARED = "msvit_shared"
# Entry in the metadata of a file, as JSON, and of a state dict: what a model needs beside its tensors.
SETTINGS = "msvit_settings"
# In torch's refusal of a pickle, the class or function that it would have to call.
_FORBIDDEN = re.compile(r"Unsupported (?:global|class)[^\w]*(?:GLOBAL )?([\w.]+)")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint by name, on the CPU; `settings_of` finds its settings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or not a checkpoint, or reading it would execute code.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path}: no such file")
    try:
        state = _read(path)
    except pickle.UnpicklingError as error:
        raise ValueError(f"checkpoint {path} cannot be read; {_refusal(error)}") from error
    except (SafetensorError, EOFError, RuntimeError, KeyError, ValueError, OSError) as error:
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
    tensors = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return with_settings(tensors, settings_of(state))


def settings_of(state: Mapping[str, Any]) -> Any:
    """The settings in a state dict of a model, or of the wrapper of a model; None if it has none."""
    metadata = getattr(state, "_metadata", None)
    entries = (metadata.get(place) for place in ("", "module")) if isinstance(metadata, Mapping) else ()
    return next((entry[SETTINGS] for entry in entries if isinstance(entry, Mapping) and SETTINGS in entry), None)


def with_settings(state: Mapping[str, Tensor], settings: Any) -> dict[str, Tensor]:
    """A copy of a state dict with these settings in its metadata, as `nn.Module.load_state_dict` expects them."""
    copy = OrderedDict(state)
    if settings is not None:
        cast(Any, copy)._metadata = {"": {SETTINGS: settings}}
    return copy


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


def _refusal(error: pickle.UnpicklingError) -> str:
    """Why `torch.load` refused a file; its own text advises to execute the code of the file."""
    text = str(error)
    found = _FORBIDDEN.search(text)
    if found is None:
        return f"it is damaged or not a checkpoint: {text}"
    return (
        f"it has a {found[1]} beside its tensors, and loading that executes code. If you trust the file, save its "
        "state dict alone in a new one: torch.save(torch.load(path, weights_only=False)['state_dict'], new_path)"
    )


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
        shared = metadata_object(metadata, SHARED) if SHARED in metadata else {}
        settings = metadata_object(metadata, SETTINGS) if SETTINGS in metadata else None
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, stored in shared.items():
        if name in tensors or not isinstance(stored, str) or stored not in tensors:
            raise ValueError(f"metadata {SHARED}: expected further names of stored tensors, got {name!r}: {stored!r}")
    return with_settings(tensors | {name: tensors[stored] for name, stored in shared.items()}, settings)
