"""The pass over test images: what it leaves behind if its caller stops early, and which mask goes with which image."""

from contextlib import closing

import pytest
import torch

import msvit
from msvit.evaluation.outcomes import outcomes
from tests.model.model_helpers import images_of, mask_of, small_vit


def make_model():
    return msvit.from_timm(small_vit(), coarse=16, gate="entropy")


def batches():
    return [(images_of(48), torch.tensor([0, 1])) for _ in range(3)]


def test_modes_come_back_if_the_caller_stops_early():
    model = make_model().train()
    model.gate.eval()
    with closing(outcomes(model, batches())) as results:
        next(results)
        assert not model.training
    assert model.training
    assert model.blocks[0].training
    assert not model.gate.training


def test_masks_go_with_their_images():
    masks = mask_of((6, 3, 3))
    found = torch.cat([each.decision.fine_mask for each in outcomes(make_model(), batches(), masks=masks)])
    assert torch.equal(found, masks)


def test_a_label_beyond_the_classes_is_refused():
    with pytest.raises(ValueError, match="an image has the label 5"):
        list(outcomes(make_model(), [(images_of(48), torch.tensor([0, 5]))]))
