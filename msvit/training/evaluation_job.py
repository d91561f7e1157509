"""`msvit eval`: scores a run or a checkpoint file with the options of the command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msvit
from msvit.training.build import build_model, lacks_gate
from msvit.training.checkpoints import MODEL_FILE
from msvit.training.config import Config
from msvit.training.gate_setup import calibrate, set_up_gate
from msvit.training.presets import make_config
from msvit.training.processes import make_accelerator
from msvit.training.runs import load_run, run_folder
from msvit.training.tasks import TaskScores, task_of


def evaluate_checkpoint(path: Path, values: dict[str, Any]) -> tuple[str, TaskScores]:
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
    folder = run_folder(path)
    if folder is None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a checkpoint or the folder of a run, got no such path")
        config = make_config(values.pop("preset", None), **values)
        return str(path), _evaluate(config, path, {}, values.get("gate_file"))
    if "preset" in values:
        raise ValueError(
            f"--preset: expected none, since {folder} is a run with its own values; got {values['preset']}"
        )
    run = load_run(folder)
    weights = path if path.is_file() else run.checkpoint().folder / MODEL_FILE
    derived = dict(run.derived)
    if "num_classes" in values:
        derived["num_classes"] = values["num_classes"]
    if values.keys() & {"gate", "gate_target"}:
        del derived["gate_setting"]
    return str(weights), _evaluate(run.config.replace(**values), weights, derived, values.get("gate_file"))


def _evaluate(config: Config, weights: Path, derived: Mapping[str, Any], gate_file: str | None) -> TaskScores:
    accelerator = make_accelerator(config)
    task = task_of(config)
    blank = task.backbone(build_model(config, 2, weights=False))

    def test_images() -> Any:
        return task.dataset(False, blank.image_size, derived.get("classes"))

    setting = derived.get("gate_setting")
    if setting is None:  # from a second data set, since a stream may remember its position
        setting = calibrate(config, blank, lambda: task.calibration_images(test_images(), blank.image_size))
    dataset = test_images()
    model = build_model(config, derived.get("num_classes") or task.count_classes(dataset), setting, weights=False)
    missing = msvit.load_checkpoint(model, weights)
    if gate_file is not None:
        set_up_gate(task.backbone(model), config, setting, gate_file)
    elif lacks_gate(missing):
        raise ValueError(f"{weights}: expected a checkpoint with a gate, got one without; see --gate and --gate-file")
    return task.score(model.to(accelerator.device), dataset, accelerator)
