"""Token counts of a decision against those of its layout, another backbone with a gate, and policies as modules."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import msvit
from msvit.gates import EntropyGate
from msvit.models.gated import GatedBackbone
from msvit.policies import Budget, Selection, Threshold
from msvit.tokens.decision import Decision, take_decision
from msvit_kernels import Scales
from tests.model.model_helpers import images_of, mask_of
from tests.model.reducer_helpers import make_model

SCALES = [
    pytest.param(Scales((2, 3), 2, 1), id="s2"),
    pytest.param(Scales((3, 2), 3, 0), id="s3-no-prefix"),
    pytest.param(Scales((1, 1), 4, 5), id="s4-one-region"),
]


@pytest.mark.parametrize("fine", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scales", SCALES)
def test_counts_are_those_of_the_layout(scales: Scales, fine: float) -> None:
    mask = mask_of((4, *scales.regions), fine)
    decision = Decision(mask, scales, int(mask.sum()))
    layout = decision.layout()
    assert decision.total_tokens == layout.total_tokens == int(layout.cu_seqlens[-1])
    assert layout.scales == scales
    assert torch.equal(decision.num_patches(), (layout.num_tokens - scales.num_prefix).long())
    torch.testing.assert_close(decision.patches_per_image(), decision.num_patches().float().mean())
    torch.testing.assert_close(decision.fine_shares(), mask.float().mean((1, 2)))
    assert set(decision.num_patches().tolist()) <= set(scales.possible_patches)
    assert (scales.possible_patches[0], scales.possible_patches[-1]) == (scales.num_regions, scales.most_patches)


def test_total_is_unknown_without_a_count() -> None:
    decision = Decision(mask_of((2, 2, 3)), Scales((2, 3), 2, 1))
    assert decision.total_tokens is None
    assert decision.layout().total_tokens == 2 * (1 + 6) + 3 * int(decision.fine_mask.sum())


def test_weight_is_the_mask_with_the_gradient_of_the_soft_gate() -> None:
    logits = torch.linspace(-2, 2, 12).view(2, 2, 3).requires_grad_()
    decision = take_decision(nn.Identity(), Budget(12), logits, Scales((2, 3), 2, 1))
    assert torch.equal(decision.fine_weight, decision.fine_mask.float())
    decision.fine_weight.sum().backward()
    probability = logits.detach().sigmoid()
    torch.testing.assert_close(logits.grad, probability * (1 - probability))
    with torch.no_grad():
        assert take_decision(nn.Identity(), Budget(12), logits, Scales((2, 3), 2, 1)).fine_weight is None


class TokenCounter(GatedBackbone):
    """A backbone without a single layer: it classifies images by their number of tokens."""

    def __init__(self) -> None:
        super().__init__((48, 48), Scales((3, 3), 4, 0))
        self.gate = EntropyGate(16)
        self.policy = Budget(24)

    def classify(self, images: Tensor, decision: Decision) -> Tensor:
        return decision.num_patches()[:, None].float()


def test_another_backbone() -> None:
    model, images = TokenCounter(), images_of(48, 3)
    assert model(images).sum() == 3 * 24
    assert (model.scale_factor, model.grid_size, model.coarse_grid_size) == (4, (12, 12), (3, 3))
    assert model(images, torch.ones(3, 3, 3, dtype=torch.bool)).tolist() == [[144.0]] * 3
    with pytest.raises(ValueError, match=r"expected 9 \(all coarse\) to 144 \(all fine\), got 145"):
        model.policy = Budget(145)
    with pytest.raises(ValueError, match=r"images: expected shape \[batch, 3, 48, 48\]"):
        model(images_of(32))


def test_a_module_can_be_the_policy() -> None:
    class Coarse(nn.Module):
        def forward(self, logits: Tensor, scale_factor: int) -> Selection:
            return Selection(torch.zeros_like(logits, dtype=torch.bool), 0)

        def check(self, num_regions: int, scale_factor: int) -> None:
            pass

    model = TokenCounter()
    model.policy = Coarse()
    assert model(images_of(48)).tolist() == [[9.0]] * 2
    with pytest.raises(TypeError, match=r"policy: expected a policy such as msvit\.policies\.Threshold, got Identity"):
        model.policy = nn.Identity()
    with pytest.raises(TypeError, match="policy: expected an instance, got the class Threshold"):
        model.policy = Threshold


class Learned(nn.Module):
    """A policy with a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, logits: Tensor, scale_factor: int) -> Selection:
        return Selection(logits > self.offset, None)

    def check(self, num_regions: int, scale_factor: int) -> None:
        pass


def test_a_policy_that_is_a_module_can_be_replaced(tmp_path: Path) -> None:
    """Its parameters are those of the model as long as it is the policy."""
    model, learned = make_model({}, gate="mlp").float(), Learned()
    before, images = set(model.state_dict()), images_of(48)
    msvit.save_checkpoint(model, tmp_path / "without.safetensors")
    model.policy = learned
    assert model.policy is learned is model.get_submodule("policy")
    assert set(model.state_dict()) - before == {"policy.offset"}
    assert torch.func.functional_call(model, {"policy.offset": torch.tensor(1e9)}, images).isfinite().all()
    assert msvit.load_checkpoint(model, tmp_path / "without.safetensors") == ["policy.offset"]
    assert model.double().policy.offset.dtype == torch.float64
    assert copy.deepcopy(model).policy is not learned
    other = Learned()
    model.policy = other
    assert (model.policy, model.get_submodule("policy")) == (other, other)
    for policy in (Threshold(), Budget(20)):
        model.policy = policy
        assert model.policy is policy
        assert set(model.state_dict()) == before
    model.policy = learned
    assert model.policy is learned
    with pytest.raises(AttributeError):
        del model.policy
    assert model.policy is learned
