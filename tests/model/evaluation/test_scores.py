"""Evaluations of a model with reducers: everything but its cost is that of the model."""

import math

import pytest
import torch
import torch.nn.functional as F

from msvit.evaluation.by_image import TestImages
from msvit.evaluation.by_image import evaluate as evaluate_for_report
from msvit.evaluation.scores import evaluate
from msvit.training.batches import Batch
from tests.model.model_helpers import images_of
from tests.model.reducer_helpers import EverySecond, make_model

IMAGES, LABELS = images_of(48, 6), torch.arange(6) % 5


@torch.no_grad()
def test_evaluation_in_training() -> None:
    model = make_model({1: EverySecond("before_block")}, gate="mlp").float()
    batches = [Batch(IMAGES[i : i + 3], LABELS[i : i + 3], None) for i in (0, 3)]
    found = evaluate(model, batches)
    logits = model(IMAGES)
    assert math.isnan(found.gmacs)
    assert found.top1 == pytest.approx((logits.argmax(1) == LABELS).float().mean().item())
    assert found.loss == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-4)
    model.reducers.clear()
    plain = evaluate(model, batches)
    assert plain.gmacs > 0
    assert (found.tokens_per_image, found.fine_share) == (plain.tokens_per_image, plain.fine_share)
    assert found.loss != plain.loss


def test_evaluation_for_the_report() -> None:
    model, test = make_model({1: EverySecond("before_block")}, gate="mlp").float(), TestImages(IMAGES, LABELS, None)
    found = evaluate_for_report(model, test, 4)
    assert math.isnan(found.gmacs)
    with torch.no_grad():
        assert torch.equal(found.correct, model(IMAGES).argmax(1) == LABELS)
    model.reducers.clear()
    plain = evaluate_for_report(model, test, 4)
    assert plain.gmacs > 0
    assert torch.equal(found.tokens, plain.tokens)
