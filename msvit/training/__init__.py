"""Trains a mixed-scale model and its gate: recipes, a loop that can be resumed, and folders of runs."""

from typing import TYPE_CHECKING, Any

from msvit.extras import require_extra
from msvit.training.config import Config
from msvit.training.presets import PRESETS, make_config
from msvit.training.runs import Run, load_run

if TYPE_CHECKING:
    from msvit.training.training_job import resume_run, start_run

__all__ = ["PRESETS", "Config", "Run", "load_run", "make_config", "resume_run", "start_run"]


def __getattr__(name: str) -> Any:
    """Imports the loop on first use, so that reading runs does not need the packages of `msvit[train]`."""
    if name in ("resume_run", "start_run"):
        require_extra("train")
        from msvit.training import training_job

        return getattr(training_job, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
