"""Creates and reads the folders of runs.

    RUN/
        config.json     {"format": 1, "config": every value of the run, see `msvit.training.Config`,
                         "num_classes", "classes": names of the classes, or null,
                         "image_size": [H, W], "coarse": pixels, "steps_per_epoch", "parameters",
                         "gate_setting": radius, probability or threshold of a radial, random or entropy gate, or null,
                         "versions": {"torch", "timm", "python"}}
        metrics.csv     one row per finished epoch (1, 2, ...):
                         epoch, step;
                         train_loss = task_loss + lambda * gate_loss (lambda is 0 while the gate is delayed),
                         train_tokens_per_image;
                         on the test images, without noise: test_loss, top1, top5 (shares in [0, 1]) or, for
                         segmentation, miou and pixel_accuracy (shares), tokens_per_image, fine_share, gmacs (with the
                         gate), which are means over windows for segmentation;
                         images_per_s of training; seconds of training so far
        classes.csv     segmentation only, a row per class, for the last epoch: class, iou, accuracy (share of its
                         pixels that are right), coarse_share (share of its pixels in coarse regions); nan without any
        priors.csv      GBaS only: epoch (0 = as initialised), theta_0, theta_1, ... in raster order
        checkpoints/    the newest two, see `msvit.training.checkpoints`
        tensorboard/    with --tensorboard

All images of a run are uint8; the model normalises them.
"""

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

import msvit
from msvit.gates import MLPGate
from msvit.training.build import build_model
from msvit.training.checkpoints import MODEL_FILE, Checkpoint, latest_checkpoint
from msvit.training.config import Config
from msvit.training.metrics import PRIORS_FILE, columns_of, read_metrics, read_numbers
from msvit.training.tasks import Task, task_of
from msvit_kernels.files import write_text

CONFIG_FILE = "config.json"
_FORMAT = 1
_DERIVED = {"num_classes", "image_size", "coarse", "steps_per_epoch", "gate_setting"}


@dataclass(frozen=True)
class Run:
    """A run on disk.

    Attributes:
        folder: folder of the run.
        config: values of the run.
        derived: the other entries of config.json, such as num_classes, classes and image_size.
        metrics: row of metrics.csv for each finished epoch, by column.
    """

    folder: Path
    config: Config
    derived: dict[str, Any]
    metrics: list[dict[str, float]]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def priors(self) -> Tensor | None:
        """Learned priors theta, fp32 [1 + epochs, Hc, Wc], initial ones first; None without GBaS."""
        rows = read_numbers(self.folder / PRIORS_FILE)
        if not rows:
            return None
        height, width = (side // self._coarse for side in self.image_size)
        return torch.tensor([list(row.values())[1:] for row in rows]).view(-1, height, width)

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        height, width = self.derived["image_size"]
        return height, width

    def checkpoint(self) -> Checkpoint:
        """The newest checkpoint that is not damaged.

        Raises:
            FileNotFoundError: the run has no checkpoint yet.
            ValueError: all checkpoints are damaged.
        """
        return latest_checkpoint(self.folder)

    @property
    def task(self) -> Task:
        """The task of the run."""
        return task_of(self.config)

    def untrained_model(self) -> Any:
        """The model of the run without its weights, in training mode."""
        return build_model(self.config, self.derived["num_classes"], self.derived["gate_setting"], weights=False)

    def model(self) -> Any:
        """The model with the weights of the last checkpoint, in evaluation mode, on the CPU.

        Raises:
            FileNotFoundError: the run has no checkpoint yet.
            ValueError: all checkpoints are damaged.
        """
        model = self.untrained_model()
        msvit.load_checkpoint(model, self.checkpoint().folder / MODEL_FILE)
        return model.eval()

    def test_dataset(self) -> Any:
        """The test images: items are (uint8 image [3, H, W], label)."""
        return self.task.dataset(False, self.image_size, self.derived.get("classes"))

    def train_dataset(self) -> Any:
        """The training images with augmentation: items are (uint8 image [3, H, W], label)."""
        return self.task.dataset(True, self.image_size)

    @property
    def _coarse(self) -> int:
        coarse: int = self.derived["coarse"]
        return coarse


def load_run(folder: str | os.PathLike[str]) -> Run:
    """Reads the folder of a run; its checkpoints are read on demand.

    Args:
        folder: folder that `msvit train` or `start_run` wrote.

    Returns:
        The run with its configuration and its metrics.

    Raises:
        FileNotFoundError: the folder does not exist, or it has no config.json.
        ValueError: config.json or metrics.csv is damaged or was written by another version.
    """
    folder = Path(folder)
    path = folder / CONFIG_FILE
    if not path.is_file():
        found = "a folder without config.json" if folder.is_dir() else "no such path"
        raise FileNotFoundError(f"{folder}: expected the folder of a run, got {found}")
    try:
        stored = json.loads(path.read_text())
        if stored["format"] != _FORMAT:
            raise ValueError(f"expected format {_FORMAT}, got {stored['format']}")
        config = Config.from_dict(stored["config"])
        if missing := sorted(_DERIVED - stored.keys()):
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    derived = {name: value for name, value in stored.items() if name not in ("format", "config")}
    return Run(folder, config, derived, read_metrics(folder, columns_of(task_of(config).test_columns)))


def run_folder(path: Path) -> Path | None:
    """RUN for RUN and for RUN/checkpoints/step-.../model.safetensors; None for other files."""
    if path.is_dir():
        return path
    candidates = list(path.resolve().parents)[2:3]
    return next((folder for folder in candidates if (folder / CONFIG_FILE).is_file()), None)


def learned_gate(path: Path) -> MLPGate:
    """Reads the gate of a run: that of its last checkpoint, or of the checkpoint file in it that is given.

    Raises:
        FileNotFoundError: the folder is no run, or it has no checkpoint yet.
        ValueError: the run has no learned gate, or its files are damaged.
    """
    folder = run_folder(path)
    run = load_run(path if folder is None else folder)
    if run.config.gate != "learned":
        raise ValueError(f"--gate-file {path}: expected a run with --gate learned, got {run.config.gate}")
    if path == folder:
        gate = run.model().gate
    else:
        model = run.untrained_model()
        msvit.load_checkpoint(model, path)
        gate = model.gate
    learned: MLPGate = gate
    return learned


def create_run(folder: Path, config: Config, derived: dict[str, Any]) -> Run:
    """Makes the folder of a new run.

    Args:
        folder: folder of the run, made if it does not exist.
        config: values of the run.
        derived: the other entries of config.json, see the module's docstring.

    Returns:
        The run, without metrics.

    Raises:
        FileExistsError: the folder already contains a run.
        OSError: the folder or its config.json cannot be written.
    """
    check_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()}
    stored = {"format": _FORMAT, "config": config.to_dict(), **derived, "versions": versions}
    write_text(folder / CONFIG_FILE, json.dumps(stored, indent=2) + "\n")
    return load_run(folder)


def check_new(folder: Path) -> None:
    """Raises FileExistsError if the folder already contains a run."""
    if (folder / CONFIG_FILE).exists():
        raise FileExistsError(f"{folder}: expected a new folder, got a run; --resume {folder} continues it")
