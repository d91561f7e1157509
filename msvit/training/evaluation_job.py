"""Evaluation of a run or a file from what the command line says about it."""

from pathlib import Path
from typing import Any

import msvit
from msvit.models import MixedScaleVisionTransformer
from msvit.training.batches import Share, ordered_batches
from msvit.training.build import build_model
from msvit.training.checkpoints import MODEL_FILE
from msvit.training.config import Config
from msvit.training.datasets import count_classes, make_dataset
from msvit.training.evaluate import Evaluation, evaluate
from msvit.training.presets import make_config
from msvit.training.runs import CONFIG_FILE, load_run
from msvit.training.trainer import make_accelerator


def evaluate_checkpoint(path: Path, values: dict[str, Any]) -> tuple[str, Evaluation]:
    """Evaluates on the test images.

    Args:
        path: folder of a run, or a checkpoint file, inside of a run or not.
        values: of `Config`, in place of the run's or, for a file of its own, of the preset's.

    Returns:
        The path of the weights, and what was found.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: the checkpoint is damaged or of another model, or the data cannot be read.
    """
    run_folder = _run_folder(path)
    if run_folder is None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a checkpoint or the folder of a run, got nothing there")
        config, setting, classes = make_config(values.pop("preset", "vit"), **values), None, None
        weights = path
    else:
        if "preset" in values:
            raise ValueError(f"--preset: {run_folder} is a run with values of its own")
        run = load_run(run_folder)
        config = run.config.replace(**values)
        setting, classes = run.derived["gate_setting"], values.get("num_classes") or run.derived["num_classes"]
        weights = path if path.is_file() else run.checkpoint().folder / MODEL_FILE
    return str(weights), _evaluate(config, weights, setting, classes)


def _evaluate(config: Config, weights: Path, setting: float | None, classes: int | None) -> Evaluation:
    accelerator = make_accelerator(config)
    size = build_model(config, 1, setting, weights=False).image_size
    dataset = make_dataset(config, False, size)
    model = build_model(config, classes or count_classes(config, dataset), setting, weights=False)
    msvit.load_checkpoint(model, weights)
    prepared: MixedScaleVisionTransformer = model.to(accelerator.device)
    share = Share(accelerator.process_index, accelerator.num_processes)
    batches = ordered_batches(dataset, min(256, config.batch_size), config.num_workers, share)
    return evaluate(prepared, batches, autocast=accelerator.autocast)


def _run_folder(path: Path) -> Path | None:
    """RUN for RUN and for RUN/checkpoints/step-.../model.safetensors, None for other files."""
    if path.is_dir():
        return path
    candidates = list(path.resolve().parents)[2:3]
    return next((folder for folder in candidates if (folder / CONFIG_FILE).is_file()), None)
