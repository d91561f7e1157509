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
        The images on the CPU, with the boxes of their objects if the data set gives them. Images that cannot be read
        are named in warnings and left out.

    Raises:
        ValueError: the data set cannot be read, or has no readable image.
    """
    dataset: Any = run.test_dataset()
    if isinstance(getattr(dataset, "images", None), Tensor):
        whole = TestImages(dataset.images, dataset.labels, getattr(dataset, "boxes", None))
        return whole if limit is None else whole.first(limit)
    try:
        found = first_images(dataset, limit, run.config.num_workers)
    except ValueError as error:
        raise ValueError(f"{run.folder}: {error}") from error
    return TestImages(found.images, found.labels, None, found.left_out)
