"""Threshold and Budget: which regions become fine."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msvit.policies import Budget, Threshold

# Few distinct values, so that ties are the rule.
SCORES = st.sampled_from([-math.inf, -1.5, 0.0, -0.0, 0.25, 3.0, math.inf, math.nan])


@st.composite
def budgets(draw: st.DrawFn) -> tuple[torch.Tensor, int, float]:
    """Scores [batch, Hc, Wc], scale factor and tokens per image."""
    batch, height, width = (draw(st.integers(1, n)) for n in (5, 4, 4))
    scale_factor = draw(st.integers(2, 4))
    num_regions = height * width
    scores = draw(st.lists(SCORES, min_size=batch * num_regions, max_size=batch * num_regions))
    most = num_regions * scale_factor**2
    tokens = draw(st.integers(num_regions, most) | st.floats(num_regions, most))
    return torch.tensor(scores).view(batch, height, width), scale_factor, tokens


def best_first(values: list[float]) -> list[int]:
    """Indices by falling score: the first index first among equals, NaN last."""
    return sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), -values[i], i))


@settings(max_examples=300, deadline=None)
@given(budgets())
def test_budget_is_exact_and_takes_the_best(case: tuple[torch.Tensor, int, float]) -> None:
    scores, scale_factor, tokens_per_image = case
    batch, num_regions = scores.shape[0], scores[0].numel()
    fine_mask, num_fine = Budget(tokens_per_image)(scores, scale_factor)

    allowed = batch * Fraction(str(tokens_per_image))
    assert num_fine == int(fine_mask.sum()) == (allowed - batch * num_regions) // (scale_factor**2 - 1)
    tokens = batch * num_regions + num_fine * (scale_factor**2 - 1)
    assert tokens <= allowed < tokens + scale_factor**2 - 1
    chosen = fine_mask.flatten().nonzero().flatten().tolist()
    assert chosen == sorted(best_first(scores.flatten().tolist())[:num_fine])


@settings(max_examples=100, deadline=None)
@given(budgets())
def test_budget_per_image_is_that_of_the_image_alone(case: tuple[torch.Tensor, int, float]) -> None:
    scores, scale_factor, tokens_per_image = case
    policy = Budget(tokens_per_image, per="image")
    fine_mask, num_fine = policy(scores, scale_factor)
    alone = [Budget(tokens_per_image)(image[None], scale_factor) for image in scores]
    assert torch.equal(fine_mask, torch.cat([choice.fine_mask for choice in alone]))
    assert num_fine == sum(choice.num_fine for choice in alone)
    assert num_fine == policy.num_fine(len(scores), scores[0].numel(), scale_factor)


DECIMAL = [
    pytest.param(55.3, 10, 21, id="float"),
    pytest.param(np.float64(55.3), 10, 21, id="numpy-float64"),
    pytest.param(np.float32(55.3), 10, 21, id="numpy-float32"),
    pytest.param(np.int64(52), 10, 10, id="numpy-int"),
    pytest.param(Decimal("55.3"), 10, 21, id="decimal"),
    pytest.param(Fraction(149, 3), 9, 2, id="fraction"),
    pytest.param(49.1, 30, 1, id="first-region"),
    pytest.param(195.9, 30, 1469, id="last-region"),
]


@pytest.mark.parametrize(("tokens_per_image", "batch", "fine"), DECIMAL)
def test_budget_in_decimals(tokens_per_image: float, batch: int, fine: int) -> None:
    fine_mask, num_fine = Budget(tokens_per_image)(torch.randn(batch, 7, 7), 2)
    assert num_fine == int(fine_mask.sum()) == fine


@pytest.mark.parametrize(("tokens", "fine"), [(9, 0), (36, 18), (22, 8)], ids=["all-coarse", "all-fine", "between"])
def test_budget_at_its_bounds(tokens: int, fine: int) -> None:
    fine_mask, num_fine = Budget(tokens)(torch.randn(2, 3, 3), 2)
    assert num_fine == int(fine_mask.sum()) == fine


def test_budget_gives_tokens_of_easy_images_to_hard_ones() -> None:
    scores = torch.stack([torch.zeros(3, 3), torch.ones(3, 3)])
    fine_mask, _ = Budget(22)(scores, 2)
    assert fine_mask.sum((1, 2)).tolist() == [0, 8]


@pytest.mark.parametrize("per", ["batch", "image"])
def test_budget_of_an_empty_batch(per: str) -> None:
    fine_mask, num_fine = Budget(20, per)(torch.zeros(0, 3, 3), 2)
    assert (fine_mask.shape, fine_mask.dtype, num_fine) == ((0, 3, 3), torch.bool, 0)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_threshold_compares_probabilities(probability: float) -> None:
    logits = torch.linspace(-5, 5, 48).view(1, 6, 8)
    fine_mask, num_fine = Threshold(probability)(logits, 2)
    assert torch.equal(fine_mask, logits.sigmoid() > probability)
    assert num_fine is None


def test_threshold_at_one_half_is_the_sign() -> None:
    logits = torch.tensor([[[-1e-6, 0.0, 1e-6]]])
    assert Threshold()(logits, 2).fine_mask.tolist() == [[[False, False, True]]]


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_threshold_makes_nan_coarse(probability: float) -> None:
    assert not Threshold(probability)(torch.full((1, 2, 2), math.nan), 2).fine_mask.any()


WRONG_VALUES = [
    pytest.param(lambda: Threshold(1.5), r"probability: expected a value in \[0, 1\], got 1.5", id="probability"),
    pytest.param(lambda: Threshold(-0.1), r"probability: expected a value in \[0, 1\], got -0.1", id="probability-low"),
    pytest.param(lambda: Threshold(math.nan), "probability: expected a value", id="probability-nan"),
    pytest.param(lambda: Budget(0), "tokens_per_image: expected a positive number, got 0", id="budget-zero"),
    pytest.param(lambda: Budget(-98), "tokens_per_image: expected a positive number, got -98", id="budget-negative"),
    pytest.param(lambda: Budget(math.nan), "tokens_per_image: expected a positive number", id="budget-nan"),
    pytest.param(lambda: Budget(math.inf), "tokens_per_image: expected a positive number", id="budget-inf"),
    pytest.param(lambda: Budget(98, per="epoch"), "per: expected one of batch, image, got 'epoch'", id="per"),
    pytest.param(lambda: Budget(8)(torch.zeros(1, 3, 3), 2), r"expected 9 \(all coarse\) to 36 .* got 8", id="low"),
    pytest.param(lambda: Budget(36.5)(torch.zeros(1, 3, 3), 2), r"36 \(all fine\), got 36.5", id="high"),
]


@pytest.mark.parametrize(("call", "words"), WRONG_VALUES)
def test_wrong_value(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("value", ["98", None, True, [98], torch.tensor(98)], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(("policy", "name"), [(Budget, "tokens_per_image"), (Threshold, "probability")])
def test_wrong_type(policy, name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"{name}: expected a number, got "):
        policy(value)
