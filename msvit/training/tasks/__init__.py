"""Tasks: everything in a run that depends on what the model predicts."""

from msvit.training.config import Config
from msvit.training.tasks.base import Task, TaskScores
from msvit.training.tasks.classification import Classification
from msvit.training.tasks.segmentation import Segmentation

TASKS: dict[str, type[Task]] = {"classification": Classification, "segmentation": Segmentation}

__all__ = ["TASKS", "Task", "TaskScores", "task_of"]


def task_of(config: Config) -> Task:
    """Makes the task of a run, `config.task`."""
    return TASKS[config.task](config)
