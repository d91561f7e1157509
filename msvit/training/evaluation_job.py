"""`msvit eval`: scores a run or a checkpoint file with the options of the command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msvit
from msvit.evaluation.scores import Scores
from msvit.models import MixedScaleVisionTransformer
from msvit.training.batches import calibration_images
from msvit.training.build import build_model, calibrate, set_up_gate
from msvit.training.checkpoints import MODEL_FILE
from msvit.training.config import Config
from msvit.training.datasets import count_classes, make_dataset
from msvit.training.presets import make_config
from msvit.training.processes import make_accelerator, score_test_set
from msvit.training.runs import CONFIG_FILE, load_run


def evaluate_checkpoint(path: Path, values: dict[str, Any]) -> tuple[str, Scores]:
    """Scores a checkpoint on its test images.

    Args:
        path: folder of a run, or a checkpoint file inside or outside a run.
        values: values of `Config` that replace those of the run or, for a file outside a run, of the preset.

    Returns:
        The path of the weights, and their scores.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the checkpoint is damaged, belongs to another model or lacks a gate, or the data cannot be read.
    """
    run_folder = _run_folder(path)
    if run_folder is None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a checkpoint or the folder of a run, got no such path")
        config = make_config(values.pop("preset", "vit"), **values)
        return str(path), _evaluate(config, path, {}, values.get("gate_file"))
    if "preset" in values:
        raise ValueError(
            f"--preset: expected none, since {run_folder} is a run with its own values; got {values['preset']}"
        )
    run = load_run(run_folder)
    weights = path if path.is_file() else run.checkpoint().folder / MODEL_FILE
    derived = dict(run.derived)
    if "num_classes" in values:
        derived["num_classes"] = values["num_classes"]
    if values.keys() & {"gate", "gate_target"}:
        del derived["gate_setting"]
    return str(weights), _evaluate(run.config.replace(**values), weights, derived, values.get("gate_file"))


def _evaluate(config: Config, weights: Path, derived: Mapping[str, Any], gate_file: str | None) -> Scores:
    accelerator = make_accelerator(config)
    blank = build_model(config, 2, weights=False)

    def test_images() -> Any:
        return make_dataset(config, False, blank.image_size, derived.get("classes"))

    setting = derived.get("gate_setting")
    if setting is None:  # from a second data set, since a stream may remember its position
        setting = calibrate(config, blank, lambda: calibration_images(test_images()))
    dataset = test_images()
    model = build_model(config, derived.get("num_classes") or count_classes(config, dataset), setting, weights=False)
    missing = msvit.load_checkpoint(model, weights)
    if gate_file is not None:
        set_up_gate(model, config, setting, gate_file)
    elif any(name.startswith("gate.") for name in missing):
        raise ValueError(f"{weights}: expected a checkpoint with a gate, got one without; see --gate and --gate-file")
    prepared: MixedScaleVisionTransformer = model.to(accelerator.device)
    return score_test_set(prepared, dataset, config, accelerator)


def _run_folder(path: Path) -> Path | None:
    """RUN for RUN and for RUN/checkpoints/step-.../model.safetensors; None for other files."""
    if path.is_dir():
        return path
    candidates = list(path.resolve().parents)[2:3]
    return next((folder for folder in candidates if (folder / CONFIG_FILE).is_file()), None)
