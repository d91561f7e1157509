"""The report on training runs: figures of the paper, drawn from what the runs left on disk."""

from msvit.evaluation.by_image import Evaluation, evaluate
from msvit.report.build import build_report

__all__ = ["Evaluation", "build_report", "evaluate"]
