"""Checkpoints of a run: folders that appear complete or not at all, and whose files are verified before use.

    RUN/checkpoints/step-00000120/
        model.safetensors     the model, for msvit.load_checkpoint and --checkpoint
        loss.safetensors      learned priors of the gate loss, if it has them
        trainer.pt            step, seconds of training, sums of the epoch and states of the optimizers
        manifest.json         step, and the SHA-256 of each file above

A checkpoint is written into a hidden folder, flushed to the disk and renamed. Only then is the oldest one removed, so
that two checkpoints remain.
"""

import errno
import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from msvit.checkpoint import save_checkpoint
from msvit_kernels.files import flush, replacing, write_text

MODEL_FILE, LOSS_FILE, TRAINER_FILE, MANIFEST_FILE = (
    "model.safetensors",
    "loss.safetensors",
    "trainer.pt",
    "manifest.json",
)
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, and the number of optimizer steps before it."""

    folder: Path
    step: int

    def trainer_state(self) -> dict[str, Any]:
        """Reads the state of the trainer that was given to `write_checkpoint`.

        Raises:
            ValueError: the file cannot be read.
        """
        try:
            state: dict[str, Any] = torch.load(self.folder / TRAINER_FILE, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"checkpoint {self.folder / TRAINER_FILE} cannot be read: {error}") from error
        return state

    def loss_state(self) -> dict[str, Tensor]:
        """Reads the parameters of the gate loss by name; empty if it has none."""
        path = self.folder / LOSS_FILE
        return load_file(path) if path.exists() else {}


def write_checkpoint(
    run: Path, step: int, model: nn.Module, loss: nn.Module | None, trainer: Mapping[str, Any]
) -> Path:
    """Writes RUN/checkpoints/step-..., and removes all but the newest two.

    Args:
        run: folder of the run.
        step: number of optimizer steps so far.
        model: the model to write.
        loss: loss of the gate, or None.
        trainer: state of the trainer: tensors, numbers and strings in dicts and lists.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: the checkpoint cannot be written, as when the disk is full; no part of it remains, and older ones stay.
    """
    parent = run / "checkpoints"
    parent.mkdir(parents=True, exist_ok=True)
    final = parent / f"step-{step:08d}"
    temporary = parent / f".step-{step:08d}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        save_checkpoint(model, temporary / MODEL_FILE)
        if loss is not None and loss.state_dict():
            save_checkpoint(loss, temporary / LOSS_FILE)
        with replacing(temporary / TRAINER_FILE) as unfinished, unfinished.open("wb") as file:
            torch.save(dict(trainer), file)
        files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
        write_text(temporary / MANIFEST_FILE, json.dumps({"step": step, "files": files}, indent=2))
        if final.exists():  # the same step again, after an interruption
            shutil.rmtree(final)
        temporary.rename(final)
        flush(parent)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        older = checkpoint_folders(run)
        hint = f"; the previous one is {older[0]}" if older else ""
        text = f"checkpoint {final} cannot be written ({error}){hint}"
        raise OSError(getattr(error, "errno", None) or errno.EIO, text) from error
    for old in checkpoint_folders(run)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(run: Path) -> Checkpoint:
    """Finds the newest undamaged checkpoint; a warning names each damaged one.

    Args:
        run: folder of a run.

    Returns:
        A checkpoint whose files match the digests in its manifest.

    Raises:
        FileNotFoundError: the run has no checkpoint yet.
        ValueError: all checkpoints are damaged.
    """
    folders = checkpoint_folders(run)
    if not folders:
        raise FileNotFoundError(f"{run}: expected a checkpoint, got none; a run writes its first one after an epoch")
    for folder in folders:
        problem = _problem(folder)
        if problem is None:
            return Checkpoint(folder, int(folder.name.removeprefix("step-")))
        warnings.warn(f"checkpoint {folder} is damaged ({problem}); trying the one before it", stacklevel=2)
    raise ValueError(f"{run}: all of its checkpoints are damaged: {', '.join(folder.name for folder in folders)}")


def load_loss(loss: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads the learned priors of a checkpoint into the loss of the gate.

    Raises:
        ValueError: the checkpoint has the parameters of another loss.
    """
    try:
        loss.load_state_dict(checkpoint.loss_state())
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"checkpoint {checkpoint.folder / LOSS_FILE} does not fit the gate loss: {error}") from error


def checkpoint_folders(run: Path) -> list[Path]:
    """Folders of the complete checkpoints of a run, newest first."""
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)


def _problem(folder: Path) -> str | None:
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
        for name, digest in files.items():
            if _digest(folder / name) != digest:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
