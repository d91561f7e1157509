"""Threshold and Budget: which regions become fine."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msvit.policies import Budget, Threshold

# Few distinct values, so that ties are the rule.
SCORES = st.sampled_from([-math.inf, -1.5, 0.0, -0.0, 0.25, 3.0, math.inf])


@st.composite
def budgets(draw: st.DrawFn) -> tuple[torch.Tensor, int, float]:
    batch, height, width = (draw(st.integers(1, n)) for n in (5, 4, 4))
    scale_factor = draw(st.integers(2, 4))
    num_regions = height * width
    scores = draw(st.lists(SCORES, min_size=batch * num_regions, max_size=batch * num_regions))
    most = num_regions * scale_factor**2
    tokens = draw(st.integers(num_regions, most) | st.floats(num_regions, most))
    return torch.tensor(scores).view(batch, height, width), scale_factor, tokens


@settings(max_examples=300, deadline=None)
@given(budgets())
def test_budget_is_exact_and_takes_the_best(case: tuple[torch.Tensor, int, float]) -> None:
    scores, scale_factor, tokens_per_image = case
    batch, num_regions = scores.shape[0], scores[0].numel()
    fine_mask, num_fine = Budget(tokens_per_image)(scores, scale_factor)

    expected = math.floor(batch * (tokens_per_image - num_regions) / (scale_factor**2 - 1))
    assert num_fine == expected == int(fine_mask.sum())
    tokens = batch * num_regions + num_fine * (scale_factor**2 - 1)
    assert tokens <= batch * tokens_per_image < tokens + scale_factor**2 - 1 + 1e-6

    values = scores.flatten().tolist()
    by_score = sorted(range(len(values)), key=lambda i: (-values[i], i))  # first index first among equals
    assert set(fine_mask.flatten().nonzero().flatten().tolist()) == set(by_score[:expected])


@pytest.mark.parametrize(("tokens", "fine"), [(9, 0), (36, 18), (22, 8)], ids=["all-coarse", "all-fine", "between"])
def test_budget_at_its_bounds(tokens: int, fine: int) -> None:
    fine_mask, num_fine = Budget(tokens)(torch.randn(2, 3, 3), 2)
    assert num_fine == int(fine_mask.sum()) == fine


def test_budget_gives_tokens_of_easy_images_to_hard_ones() -> None:
    scores = torch.stack([torch.zeros(3, 3), torch.ones(3, 3)])
    fine_mask, _ = Budget(22)(scores, 2)
    assert fine_mask.sum((1, 2)).tolist() == [0, 8]


def test_budget_of_an_empty_batch() -> None:
    fine_mask, num_fine = Budget(9)(torch.zeros(0, 3, 3), 2)
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


WRONG_CALLS = [
    pytest.param(lambda: Threshold(1.5), r"probability: expected a value in \[0, 1\], got 1.5", id="probability"),
    pytest.param(lambda: Threshold(math.nan), "probability: expected a value", id="probability-nan"),
    pytest.param(lambda: Budget(0), "tokens_per_image: expected a positive number, got 0", id="budget-zero"),
    pytest.param(lambda: Budget(math.nan), "tokens_per_image: expected a positive number", id="budget-nan"),
    pytest.param(lambda: Budget(math.inf), "tokens_per_image: expected a positive number", id="budget-inf"),
    pytest.param(lambda: Budget(8)(torch.zeros(1, 3, 3), 2), r"expected 9 \(all coarse\) to 36 .* got 8", id="low"),
    pytest.param(lambda: Budget(36.5)(torch.zeros(1, 3, 3), 2), r"36 \(all fine\), got 36.5", id="high"),
]


@pytest.mark.parametrize(("call", "words"), WRONG_CALLS)
def test_wrong_call(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
