"""The test images of a run, for the report."""

from typing import Any

from torch import Tensor

from msvit.evaluation.by_image import TestImages
from msvit.training.batches import first_images
from msvit.training.runs import Run


def load_test_images(run: Run, limit: int | None = None) -> TestImages:
    """Reads the test images of a run in the order of its data set.

    Args:
        run: any run.
        limit: number of images to read, starting with the first; None for all.

    Returns:
        The images on the CPU, with the boxes of their objects if the data set gives them.

    Raises:
        ValueError: the data set cannot be read, or has no image.
    """
    dataset: Any = run.test_dataset()
    if isinstance(getattr(dataset, "images", None), Tensor):
        whole = TestImages(dataset.images, dataset.labels, getattr(dataset, "boxes", None))
        return whole if limit is None else whole.first(limit)
    try:
        return TestImages(*first_images(dataset, limit, run.config.num_workers), None)
    except ValueError as error:
        raise ValueError(f"{run.folder}: {error}") from error
