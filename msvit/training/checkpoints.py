"""Checkpoints of a run: folders that appear complete or not at all, and are known to be whole before they are used.

    RUN/checkpoints/step-00000120/
        model.safetensors     the model, for msvit.load_checkpoint and --checkpoint
        loss.safetensors      learned priors of the gate loss, where it has any
        trainer.pt            optimizers, schedulers, position in the data and sums of the epoch, as tensors and numbers
        manifest.json         step, epoch, and the SHA-256 of every file

A checkpoint is written into a hidden folder, flushed to the disk and renamed. Only then the oldest one goes, so that
two remain.
"""

import errno
import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from msvit.checkpoint import save_checkpoint

MODEL_FILE, LOSS_FILE, TRAINER_FILE, MANIFEST_FILE = (
    "model.safetensors",
    "loss.safetensors",
    "trainer.pt",
    "manifest.json",
)
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, and the number of optimizer steps behind it."""

    folder: Path
    step: int

    def trainer_state(self) -> dict[str, Any]:
        """What `write_checkpoint` got as `trainer`.

        Raises:
            ValueError: the file cannot be read.
        """
        try:
            state: dict[str, Any] = torch.load(self.folder / TRAINER_FILE, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"checkpoint {self.folder / TRAINER_FILE} cannot be read: {error}") from error
        return state

    def loss_state(self) -> dict[str, Tensor]:
        """Parameters of the gate loss, none where it has none."""
        path = self.folder / LOSS_FILE
        return load_file(path) if path.exists() else {}


def write_checkpoint(
    run: Path, step: int, model: nn.Module, loss: nn.Module | None, trainer: Mapping[str, Any]
) -> Path:
    """Writes RUN/checkpoints/step-..., and removes all but the newest two.

    Args:
        run: folder of the run.
        step: optimizer steps so far.
        model: whose parameters are written.
        loss: of the gate, or None.
        trainer: tensors, numbers and strings in dicts and lists.

    Raises:
        OSError: it cannot be written, as on a full disk; then nothing is left of it, and the older ones are there.
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
        _write(temporary / TRAINER_FILE, lambda file: torch.save(dict(trainer), file))
        files = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
        manifest = json.dumps({"step": step, "files": files}, indent=2)
        _write(temporary / MANIFEST_FILE, lambda file: file.write(manifest.encode()))
        if final.exists():  # the same step again, after an interruption
            shutil.rmtree(final)
        temporary.rename(final)
        _flush_folder(parent)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        older = checkpoint_folders(run)
        hint = f"; the previous one is {older[0]}" if older else ""
        number = getattr(error, "errno", None) or errno.EIO
        raise OSError(number, f"checkpoint {final} cannot be written ({error}){hint}") from error
    for old in checkpoint_folders(run)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest_checkpoint(run: Path) -> Checkpoint:
    """The newest checkpoint whose files are as they were written; a damaged one is named in a warning.

    Raises:
        FileNotFoundError: the run has no checkpoint yet.
        ValueError: all of them are damaged.
    """
    folders = checkpoint_folders(run)
    if not folders:
        raise FileNotFoundError(f"{run}: no checkpoint in it; a run writes its first one after an epoch")
    for folder in folders:
        problem = _problem(folder)
        if problem is None:
            return Checkpoint(folder, int(folder.name.removeprefix("step-")))
        warnings.warn(f"checkpoint {folder} is damaged ({problem}); trying the one before it", stacklevel=2)
    raise ValueError(f"{run}: all of its checkpoints are damaged: {', '.join(folder.name for folder in folders)}")


def load_loss(loss: nn.Module, checkpoint: Checkpoint) -> None:
    """Loads the learned priors.

    Raises:
        ValueError: the checkpoint has others.
    """
    try:
        loss.load_state_dict(checkpoint.loss_state())
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"checkpoint {checkpoint.folder / LOSS_FILE} does not fit: {error}") from error


def checkpoint_folders(run: Path) -> list[Path]:
    """Complete checkpoints, newest first."""
    return sorted((run / "checkpoints").glob("step-*"), reverse=True)


def _problem(folder: Path) -> str | None:
    try:
        files = json.loads((folder / MANIFEST_FILE).read_text())["files"]
        for name, digest in files.items():
            if _digest(folder / name) != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, write: Callable[[Any], Any]) -> None:
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """A rename survives a power cut once its folder is flushed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
