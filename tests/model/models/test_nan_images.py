"""One broken image in a batch: its neighbours keep their tokens and logits, and an error names it."""

import math

import pytest
import torch
from torch import Tensor

import msvit
from msvit.models.vit import TOKEN_MODES, MixedScaleVisionTransformer
from msvit.policies import Budget, Policy, Threshold
from tests.model.model_helpers import LOGITS_TOLERANCE, images_of, small_vit

BROKEN = 2
POLICIES = [
    pytest.param(Threshold(0.5), id="threshold"),
    pytest.param(Budget(20), id="budget"),
    pytest.param(Budget(20, per="image"), id="budget-per-image"),
]


def make_model(policy: Policy, token_mode: str = "packed") -> MixedScaleVisionTransformer:
    model = msvit.from_timm(small_vit(), 16, gate="mlp", policy=policy, token_mode=token_mode)
    torch.nn.init.normal_(model.gate.fc4.weight)
    model.gate.fc4.bias.data.zero_()
    return model.eval()


def broken_images(value: float = math.nan) -> Tensor:
    images = images_of(48, batch=4)
    images[BROKEN, 1, 20, 20] = value
    images[BROKEN, :, :, 32:] = value
    return images


@torch.no_grad()
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("token_mode", TOKEN_MODES)
def test_neighbours_of_a_broken_image(token_mode: str, policy: Policy) -> None:
    model, images = make_model(policy, token_mode), broken_images()
    others = [i for i in range(len(images)) if i != BROKEN]
    mask = model.decide(images).fine_mask
    broken_regions = model.gate(images)[BROKEN].isnan()
    assert broken_regions.sum() == 4
    assert not mask[BROKEN][broken_regions].any()
    logits = model(images)
    assert logits[BROKEN].isnan().all()
    torch.testing.assert_close(logits[others], model(images[others], mask[others]), atol=LOGITS_TOLERANCE, rtol=0)
    if policy != Budget(20):
        assert torch.equal(mask[others], model.decide(images[others]).fine_mask)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("token_mode", TOKEN_MODES)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_error_with_gradients_names_the_image(token_mode: str, policy: Policy, training: bool) -> None:
    model = make_model(policy, token_mode).train(training)
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="images: expected finite pixels, got NaN or infinity in image 2 of the"):
            model(broken_images(value))
    logits = model.gate(images_of(48, batch=4))
    scores = torch.where(torch.arange(4)[:, None, None] == 3, math.nan, logits)
    with pytest.raises(ValueError, match="gate_logits: expected numbers, got NaN for image 3 of the batch"):
        model(images_of(48, batch=4), gate_logits=scores)
    model.gate.fc2.bias.data[0] = math.nan
    with pytest.raises(ValueError, match="result of the gate: expected numbers, got NaN for image 0 of the batch"):
        model(images_of(48, batch=4))


def test_infinite_logits_are_allowed() -> None:
    """They are certain decisions, and their gradient is 0."""
    model, images = make_model(Budget(18)), images_of(48, batch=4)
    logits = torch.full((4, 3, 3), -math.inf).masked_fill(torch.eye(3).bool(), math.inf).requires_grad_()
    mask = model.decide(images, gate_logits=logits).fine_mask
    assert torch.equal(mask[0], torch.eye(3).bool())
    model(images, gate_logits=logits).sum().backward()
    assert not logits.grad.any()


def test_logits_that_are_no_floats() -> None:
    model, images = make_model(Threshold()), images_of(48)
    with pytest.raises(TypeError, match=r"gate_logits: expected floats, got torch\.bool"):
        model(images, gate_logits=torch.ones(2, 3, 3, dtype=torch.bool))
