"""The studies by name."""

from bench.experiments import segmentation
from bench.experiments.collect import measure
from bench.experiments.page import MARKERS, measured
from bench.experiments.settings import COMMON, QUICK, SETTINGS
from bench.experiments.study import Study

DIGITS = Study("experiments", "digits", SETTINGS, COMMON, QUICK, measure, measured, MARKERS)
SEGMENTATION = Study(
    "experiments_segmentation",
    "digits-segmentation",
    segmentation.SETTINGS,
    segmentation.COMMON,
    segmentation.QUICK,
    segmentation.measure,
    segmentation.text,
    segmentation.MARKERS,
)
STUDIES = {"digits": DIGITS, "segmentation": SEGMENTATION}
