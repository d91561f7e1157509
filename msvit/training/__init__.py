"""Training a mixed-scale model and its gate: recipes, a loop that survives interruptions, and folders of runs."""

from msvit.training.config import Config
from msvit.training.presets import PRESETS, make_config
from msvit.training.runs import Run, load_run
from msvit.training.trainer import resume_run, start_run

__all__ = ["PRESETS", "Config", "Run", "load_run", "make_config", "resume_run", "start_run"]
