"""The report on training runs: figures of the paper, drawn from the folders of runs."""

from msvit.evaluation.by_image import Evaluation, evaluate
from msvit.report.build import build_report

__all__ = ["Evaluation", "build_report", "evaluate"]
