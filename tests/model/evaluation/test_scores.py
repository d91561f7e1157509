"""The evaluation of a model with reducers agrees with the model in everything but the cost."""

import math

import pytest
import torch
import torch.nn.functional as F

from msvit.evaluation.scores import score
from tests.model.model_helpers import images_of
from tests.model.reducer_helpers import EverySecond, make_model

IMAGES, LABELS = images_of(48, 6), torch.arange(6) % 5


@torch.no_grad()
def test_reducers_change_loss_and_cost_but_no_counts() -> None:
    model = make_model({1: EverySecond("before_block")}, gate="mlp").float()
    batches = [(IMAGES[i : i + 3], LABELS[i : i + 3]) for i in (0, 3)]
    found = score(model, batches)
    logits = model(IMAGES)
    assert math.isnan(found.gmacs)
    assert found.top1 == pytest.approx((logits.argmax(1) == LABELS).float().mean().item())
    assert found.loss == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-4)
    model.reducers.clear()
    plain = score(model, batches)
    assert plain.gmacs > 0
    assert (found.tokens_per_image, found.fine_share) == (plain.tokens_per_image, plain.fine_share)
    assert found.loss != plain.loss
