"""`msvit train`: starts a run, or continues one from its last checkpoint."""

import datetime
import warnings
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list

from msvit.training.batches import steps_per_epoch
from msvit.training.build import build_model
from msvit.training.config import Config
from msvit.training.gate_setup import calibrate
from msvit.training.processes import make_accelerator
from msvit.training.runs import Run, check_new, create_run, load_run
from msvit.training.tasks import task_of
from msvit.training.trainer import Trainer


def start_run(config: Config, folder: Path | None = None) -> Run:
    """Trains a model in a new folder.

    Args:
        config: values of the run.
        folder: new folder for the run; None for runs/PRESET-TIME.

    Returns:
        The finished run.

    Raises:
        FileExistsError: the folder already contains a run.
        ValueError: the data, the model or the weights are invalid.
        FloatingPointError: a loss, a gradient or a weight is not finite; the message names the step and the images.
        OSError: a file cannot be written, as when the disk is full; all complete files remain.
    """
    accelerator = make_accelerator(config)
    folder = _default_folder(config) if folder is None else folder
    check_new(folder)
    _check(config)
    task = task_of(config)
    blank = task.backbone(build_model(config, 1, weights=False))
    train_set = task.dataset(True, blank.image_size)
    num_classes = task.count_classes(train_set)
    setting = calibrate(config, blank, lambda: task.calibration_images(train_set, blank.image_size))
    torch.manual_seed(config.seed)
    model = build_model(config, num_classes, setting)
    derived = {
        "num_classes": num_classes,
        "classes": task.class_names(train_set),
        "image_size": list(blank.image_size),
        "coarse": blank.coarse,
        "steps_per_epoch": steps_per_epoch(train_set, config),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gate_setting": setting,
    }
    trainer = Trainer(config, folder, model, train_set, derived, accelerator)
    if accelerator.is_main_process:
        create_run(folder, config, derived)
    accelerator.wait_for_everyone()
    return trainer.train()


def resume_run(folder: Path) -> Run:
    """Continues a run from its last checkpoint, with the same losses as without an interruption.

    Args:
        folder: folder of a run. If it has no checkpoint yet, the run starts again.

    Returns:
        The finished run.

    Raises:
        FileNotFoundError: the folder does not contain a run.
        ValueError: files of the run are damaged, or they do not fit the data.
        FloatingPointError: a loss, a gradient or a weight is not finite; the message names the step and the images.
        OSError: a file cannot be written, as when the disk is full; all complete files remain.
    """
    run = load_run(folder)
    try:
        checkpoint = run.checkpoint()
    except FileNotFoundError:
        checkpoint = None
    accelerator = make_accelerator(run.config)
    train_set = run.train_dataset()
    steps = run.derived["steps_per_epoch"]
    if (found := steps_per_epoch(train_set, run.config)) != steps:
        raise ValueError(
            f"{folder}: expected {steps} steps per epoch from the training images, got {found}; "
            "the data set has changed since the run began"
        )
    torch.manual_seed(run.config.seed)
    classes, setting = run.derived["num_classes"], run.derived["gate_setting"]
    model = build_model(run.config, classes, setting, weights=checkpoint is None)
    trainer = Trainer(run.config, folder, model, train_set, run.derived, accelerator)
    trainer.restore(checkpoint)
    return trainer.train()


def _check(config: Config) -> None:
    """Refuses values with which no run can start, and warns of those that are probably mistakes."""
    if config.freeze == "gate" and config.gate == "learned" and not (config.gate_file or config.checkpoint):
        raise ValueError("--freeze gate: expected --gate-file or --checkpoint for a trained gate, got neither")
    if config.trains_gate and config.gate_delay_epochs >= config.epochs:
        warnings.warn(
            f"--gate-delay-epochs: expected less than the {config.epochs} epochs of the run, "
            f"got {config.gate_delay_epochs:g}; the gate stays as initialised",
            stacklevel=3,
        )
    if config.preset in ("vit", "deit", "ade20k") and not (config.pretrained or config.checkpoint):
        warnings.warn(
            f"--preset {config.preset}: expected a trained backbone from --pretrained or --checkpoint, got neither; "
            "the run starts from random weights",
            stacklevel=3,
        )


def _default_folder(config: Config) -> Path:
    """runs/PRESET-TIME, with the time of the first process in all processes."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folders = [str(Path("runs") / f"{config.preset}-{now}")]
    broadcast_object_list(folders)
    return Path(folders[0])
