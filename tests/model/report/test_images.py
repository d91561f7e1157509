"""Test images of the built-in digits and of a folder, in the order of the data set."""

import dataclasses

import pytest
import torch

from msvit.evaluation.by_image import TestImages
from msvit.report.images import load_test_images
from tests.model.training.run_helpers import image_folder


def test_test_images_come_in_the_order_of_the_data_set(runs):
    run = runs["learned-0"]
    test, dataset = load_test_images(run, 7), run.test_dataset()
    assert torch.equal(test.images, torch.stack([dataset[i][0] for i in range(7)]))
    assert test.labels.tolist() == [dataset[i][1] for i in range(7)]
    assert torch.equal(test.boxes, dataset.boxes[:7])
    assert test.first(3).images.shape[0] == test.first(3).boxes.shape[0] == 3
    assert TestImages(test.images, test.labels, None).first(2).boxes is None


def test_images_of_a_folder(runs, tmp_path):
    config = runs["learned-0"].config.replace(data=str(image_folder(tmp_path)))
    run = dataclasses.replace(runs["learned-0"], config=config, derived=runs["learned-0"].derived | {"classes": None})
    whole, part, dataset = load_test_images(run), load_test_images(run, 5), run.test_dataset()
    assert torch.equal(whole.images, torch.stack([torch.as_tensor(dataset[i][0]) for i in range(8)]))
    assert whole.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert torch.equal(part.images, whole.images[:5])
    assert whole.boxes is None


def test_no_images(runs, monkeypatch):
    monkeypatch.setattr("msvit.training.runs.Run.test_dataset", lambda run: [])
    with pytest.raises(ValueError, match="learned-0: expected at least one image, got none"):
        load_test_images(runs["learned-0"])
