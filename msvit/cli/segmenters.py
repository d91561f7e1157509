"""The Segmenter of `msvit segment`, from a checkpoint or a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msvit.gates.factory import FIXED_GATE_NAMES

if TYPE_CHECKING:
    from msvit.models import Segmenter

GATES = (*FIXED_GATE_NAMES, "checkpoint")
MODEL = "msvit_seg_small_mask_patch16_32_512"


def from_checkpoint(
    path: Path, name: str | None, num_classes: int | None, classes: Path | None, gate: str | None, window: int | None
) -> tuple["Segmenter", Sequence[str]]:
    """Makes a model, loads a checkpoint, and sets the gate and a budget of half the tokens of an all-fine window.

    Args:
        path: file for `msvit.load_checkpoint`.
        name: name of the model; None for `MODEL`.
        num_classes: number of classes; None for as many as `classes` has, or those of ADE20K.
        classes: file of the names of the classes, one per line; None for ADE20K's names, or numbers.
        gate: one of `GATES`; None for that of the checkpoint, or "entropy" if it has none.
        window: height and width of a window in pixels; None for the image size of the model.

    Returns:
        The model in evaluation mode, and the names of its classes.

    Raises:
        TypeError, ValueError, OSError: an argument is invalid, or a file cannot be read or does not fit.
    """
    import msvit
    from msvit.models import Segmenter
    from msvit.policies import Budget

    _check_gate(gate)
    names = _class_names(num_classes, classes)
    if window is not None and window < 1:
        raise ValueError(f"--window: expected a positive number of pixels, got {window}")
    try:
        model = msvit.create_model(name or MODEL, num_classes=len(names), img_size=window, gate="mlp").eval()
    except ValueError as error:
        raise ValueError(f"--model, --window: {error}") from error
    if not isinstance(model, Segmenter):
        raise ValueError(f"--model: expected a Segmenter such as {MODEL}, got {name}")
    missing = msvit.load_checkpoint(model, path)
    if any(parameter.startswith("decoder.") for parameter in missing):
        raise ValueError(f"--checkpoint {path}: expected a Segmenter, got a checkpoint without a decoder")
    has_gate = not any(parameter.startswith("encoder.gate.") for parameter in missing)
    if gate == "checkpoint" and not has_gate:
        raise ValueError(f"--checkpoint: expected a checkpoint with a gate, got {path} without one")
    if not has_gate or gate is not None:
        _set_gate(model, gate or "entropy")
    model.policy = Budget(model.encoder.scales.most_patches / 2)
    return model, names


def from_run(folder: Path, classes: Path | None, gate: str | None) -> tuple["Segmenter", Sequence[str]]:
    """Loads the model of a segmentation run, with its gate and policy.

    Args:
        folder: folder that `msvit train` wrote.
        classes: file of the names of the classes; None for those of the run.
        gate: one of `GATES`; None for that of the run.

    Returns:
        The model in evaluation mode, and the names of its classes.

    Raises:
        ValueError, OSError: an argument is invalid, or the run cannot be read or is no segmentation run.
    """
    from msvit.models import Segmenter
    from msvit.training import load_run

    _check_gate(gate)
    run = load_run(folder)
    model = run.model()
    if not isinstance(model, Segmenter):
        raise ValueError(f"--run: expected a run of segmentation, got {folder} of another task")
    if gate is not None:
        _set_gate(model, gate)
    count = model.num_classes
    names = run.derived.get("classes") or [f"class {index}" for index in range(count)]
    return model, names if classes is None else _class_names(count, classes)


def _check_gate(gate: str | None) -> None:
    if gate is not None and gate not in GATES:
        raise ValueError(f"--gate: expected one of {', '.join(GATES)}, got {gate!r}")


def _set_gate(model: "Segmenter", gate: str) -> None:
    from msvit.gates import make_gate

    encoder = model.encoder
    if gate != "checkpoint":
        model.gate = make_gate(gate, encoder.region_width, encoder.coarse_grid_size, encoder.mean, encoder.std).eval()


def _class_names(num_classes: int | None, file: Path | None) -> Sequence[str]:
    """Names from a file, or ADE20K's if there are as many, or numbers."""
    from msvit.data.segmentation import ADE20K_CLASSES, read_class_names

    if num_classes is not None and num_classes < 1:
        raise ValueError(f"--num-classes: expected 1 or more, got {num_classes}")
    if file is None:
        if num_classes in (None, len(ADE20K_CLASSES)):
            return ADE20K_CLASSES
        return [f"class {index}" for index in range(num_classes)]
    names = read_class_names(file)
    if num_classes not in (None, len(names)):
        raise ValueError(f"--classes {file}: expected {num_classes} names, got {len(names)}")
    return names
