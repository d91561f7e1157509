"""Checkpoints of a run: folders that appear complete or not at all, and whose files are verified before use.

    RUN/checkpoints/step-00000120/
        model.safetensors     the model, for msvit.load_checkpoint and --checkpoint
        loss.safetensors      learned priors of the gate loss, if it has them
        trainer.pt            step, seconds of training, number of processes, sums of the epoch (means over the
                              processes) and states of the optimizers
        manifest.json         step, and the SHA-256 of each file above

A checkpoint is written into a hidden folder, flushed to the disk and renamed. Only then is the oldest one removed, so
that two checkpoints remain.
"""

import errno
import hashlib
import json
import pickle
import re
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
from msvit_kernels.files import flush, reason, replacing, write_text
from msvit_kernels.leftovers import remove_leftovers, temporary_path

MODEL_FILE, LOSS_FILE, TRAINER_FILE, MANIFEST_FILE = (
    "model.safetensors",
    "loss.safetensors",
    "trainer.pt",
    "manifest.json",
)
KEPT = 2
_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, and the number of optimizer steps before it."""

    folder: Path
    step: int

    def trainer_state(self) -> dict[str, Any]:
        """Reads the state of the trainer that was given to `write_checkpoint`.

        Raises:
            ValueError: the file cannot be read, or it contains anything else than tensors, numbers and strings.
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
    """Writes RUN/checkpoints/step-..., and removes all others but the newest one before it.

    Checkpoints of later steps are damaged: a run continues from the newest one that is whole.

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
    final = run / "checkpoints" / f"step-{step:08d}"
    temporary = temporary_path(final)
    remove_leftovers(final.parent)
    try:
        temporary.mkdir(parents=True)
        _write_files(temporary, step, model, loss, trainer)
        if final.exists():  # the same step again, after an interruption
            shutil.rmtree(final)
        temporary.rename(final)
        flush(final.parent)
    except OSError as error:
        raise unwritten(run, f"checkpoint {final}", error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    folders = checkpoint_folders(run)
    kept = [folder for folder in folders if step_of(folder) <= step][:KEPT]
    for folder in folders:
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
    return final


def _write_files(folder: Path, step: int, model: nn.Module, loss: nn.Module | None, trainer: Mapping[str, Any]) -> None:
    save_checkpoint(model, folder / MODEL_FILE)
    if loss is not None and loss.state_dict():
        save_checkpoint(loss, folder / LOSS_FILE)
    with replacing(folder / TRAINER_FILE) as unfinished, unfinished.open("wb") as file:
        try:
            torch.save(dict(trainer), file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch itself reports only where the file ended
                raise error.__context__ from error
            raise
    files = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    write_text(folder / MANIFEST_FILE, json.dumps({"step": step, "files": files}, indent=2))


def newest_text(run: Path, before: int | None = None) -> str:
    """Names the newest checkpoint of a run, of those before a step if it is given, for the end of an error."""
    folders = [folder for folder in checkpoint_folders(run) if before is None or step_of(folder) < before]
    if not folders:
        return "there is no checkpoint yet" if before is None else f"there is no checkpoint before step {before}"
    return f"the newest checkpoint is {folders[0]}"


def unwritten(run: Path, what: str, error: OSError) -> OSError:
    """Makes the error that a file of a run cannot be written: it names the checkpoint from which the run continues."""
    text = f"{what} cannot be written ({reason(error)}); {newest_text(run)}; --resume {run} continues the run"
    return OSError(error.errno or errno.EIO, text)


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
            return Checkpoint(folder, step_of(folder))
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
    folders = (path for path in (run / "checkpoints").glob("step-*") if _FOLDER.fullmatch(path.name))
    return sorted(folders, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """Number of optimizer steps before a checkpoint, from the name of its folder."""
    return int(folder.name.removeprefix("step-"))


def _problem(folder: Path) -> str | None:
    """Why a checkpoint is not whole; None if it is."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        files = manifest["files"]
        if not isinstance(files, dict) or not {MODEL_FILE, TRAINER_FILE} <= files.keys():
            return f"{MANIFEST_FILE}: expected digests of {MODEL_FILE} and {TRAINER_FILE}, got {files}"
        if manifest["step"] != step_of(folder):
            return f"{MANIFEST_FILE}: expected step {step_of(folder)}, got {manifest['step']}"
        for name, digest in files.items():
            if _digest(folder / name) != digest:
                return f"{name} has changed since it was written"
    except OSError as error:
        return str(error)
    except (ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST_FILE}: {error!r}"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
