"""The report on training runs: figures of the paper, drawn from what the runs left on disk."""

from msvit.report.build import build_report
from msvit.report.evaluation import Evaluation, evaluate

__all__ = ["Evaluation", "build_report", "evaluate"]
