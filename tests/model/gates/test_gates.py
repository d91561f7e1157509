"""Gates: shapes, ranges, preferred regions, and the start and sampling of the learned gate."""

import copy
import math

import pytest
import torch
from torch import Tensor

from msvit.gates import GATE_NAMES, INITIAL_LOGIT, ConstantGate, EntropyGate, MLPGate, RadialGate, RandomGate, make_gate
from tests.model.model_helpers import images_of

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def normalise(raw: Tensor) -> Tensor:
    return (raw / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("name", GATE_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_every_gate_returns_one_finite_logit_per_region(name: str, dtype: torch.dtype) -> None:
    images = (images_of(48, batch=3) * 50 + 128).clamp(0, 255).to(dtype)
    gate = make_gate(name, 16, (3, 3), MEAN, STD)
    logits = gate(images)
    assert (logits.shape, logits.dtype) == ((3, 3, 3), torch.float32)
    assert logits.isfinite().all()
    assert copy.deepcopy(gate)(images).shape == logits.shape


@pytest.mark.parametrize("name", GATE_NAMES)
def test_every_gate_takes_oblong_images(name: str) -> None:
    assert make_gate(name, 16, (2, 4))(torch.randn(2, 3, 32, 64)).shape == (2, 2, 4)


def test_mlp_gate_starts_fine_and_within_its_cost() -> None:
    gate = MLPGate(32, (7, 7)).eval()
    logits = gate(torch.randn(8, 3, 224, 224))
    assert (logits > 0).all()
    assert logits.mean().sigmoid().item() == pytest.approx(0.95, abs=0.01)
    assert gate.fc4.bias.item() == pytest.approx(math.log(0.95 / 0.05))
    assert gate.macs <= 0.017e9


def test_mlp_gate_sees_only_its_region_and_its_position() -> None:
    gate = MLPGate(16, (3, 3)).eval()
    torch.nn.init.normal_(gate.pos_embed)
    images = images_of(48)
    changed = images.clone()
    changed[:, :, 16:32, 32:] += 1
    difference = gate(images) != gate(changed)
    assert difference.nonzero()[:, 1:].tolist() == [[1, 2], [1, 2]]
    same_pixels = gate(torch.zeros(1, 3, 48, 48)).flatten()
    assert len(set(same_pixels.tolist())) == 9


def test_mlp_gate_normalises_uint8_images() -> None:
    gate = MLPGate(16, (3, 3), mean=MEAN, std=STD).eval()
    raw = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    torch.testing.assert_close(gate(raw), gate(normalise(raw)))


def test_mlp_gate_samples_the_gumbel_sigmoid_in_training_only() -> None:
    """P(noisy logit > 0) = sigmoid(logit), which is what makes the mask a Bernoulli sample (eq. 1)."""
    gate = MLPGate(16, (3, 3))
    logits = torch.tensor([-2.0, 0.0, 1.0])[:, None].expand(3, 40_000)
    share = (gate.train().sample(logits) > 0).float().mean(1)
    torch.testing.assert_close(share, logits[:, 0].sigmoid(), atol=0.01, rtol=0)
    assert gate.eval().sample(logits) is logits


def test_radial_gate_is_fine_inside_the_radius() -> None:
    logits = RadialGate(32, radius=0.5)(torch.zeros(2, 3, 224, 224))
    centres = (2 * torch.arange(7.0) + 1) / 7 - 1
    inside = centres[:, None] ** 2 + centres[None] ** 2 < 0.25
    assert torch.equal(logits[0] > 0, inside)
    assert torch.equal(logits[0], logits[1])
    assert logits[0].argmax() == 24  # the middle region scores highest, so a budget is spent from the centre outwards


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_random_gate_is_reproducible_and_has_its_probability(probability: float) -> None:
    images = torch.zeros(64, 3, 224, 224)
    gate = RandomGate(32, probability, seed=5)
    first, second = gate(images), gate(images)
    assert (first > 0).float().mean() == pytest.approx(probability, abs=0.03)
    assert not torch.equal(first, second)
    assert torch.equal(RandomGate(32, probability, seed=5)(images), first)
    gate.reset()
    assert torch.equal(gate(images), first)


@pytest.mark.parametrize(("fine", "logit"), [(True, INITIAL_LOGIT), (False, -INITIAL_LOGIT), (0.5, 0.0)])
def test_constant_gate(fine: bool | float, logit: float) -> None:
    assert ConstantGate(16, fine)(torch.zeros(1, 3, 32, 32)).unique().tolist() == pytest.approx([logit])


def entropy_by_hand(region: Tensor, bins: int) -> float:
    """region: [3, n, n] in [0, 1]."""
    counts = torch.histc(region.mean(0), bins, 0, 1)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * p.log2()).sum())


def test_entropy_gate_equals_the_formula() -> None:
    images = torch.rand(2, 3, 48, 64)
    logits = EntropyGate(16, bins=32, threshold=3.0)(images)
    for b, i, j in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        region = images[b, :, 16 * i : 16 * i + 16, 16 * j : 16 * j + 16]
        assert logits[b, i, j].item() == pytest.approx(entropy_by_hand(region, 32) - 3.0, abs=1e-4)


def test_entropy_gate_ranks_flat_below_gradient_below_noise() -> None:
    images = torch.full((1, 3, 16, 48), 0.3)
    images[..., 16:32] = torch.linspace(0.2, 0.5, 16)
    images[..., 32:] = torch.rand(3, 16, 16)
    flat, gradient, noise = EntropyGate(16, threshold=4.0)(images).flatten().tolist()
    assert flat == -4.0  # no entropy at all
    assert flat < gradient < noise <= math.log2(64) - 4.0


def test_entropy_gate_agrees_on_uint8_and_normalised_images() -> None:
    gate = EntropyGate(16, mean=MEAN, std=STD)
    raw = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    torch.testing.assert_close(gate(raw), gate(normalise(raw)), atol=1e-5, rtol=0)


def test_entropy_gate_keeps_values_outside_the_range() -> None:
    logits = EntropyGate(16)(torch.tensor([-9.0, 9.0]).repeat(128).view(1, 1, 16, 16).expand(1, 3, 16, 16))
    assert logits.item() == pytest.approx(1.0 - 4.0)  # two bins, one bit


WRONG_CALLS = [
    pytest.param(lambda: make_gate("best", 16, (3, 3)), ValueError, "gate: expected one of mlp, .*'best'", id="name"),
    pytest.param(lambda: make_gate(None, 16, (3, 3)), TypeError, "gate: .* got NoneType", id="name-type"),
    pytest.param(lambda: MLPGate(0, (3, 3)), ValueError, "coarse: expected a positive number", id="coarse"),
    pytest.param(lambda: MLPGate(16, (0, 3)), ValueError, "grid_size, hidden: expected positive", id="grid"),
    pytest.param(lambda: MLPGate(16, (3, 3), temperature=0), ValueError, "temperature: expected a pos", id="temper"),
    pytest.param(lambda: MLPGate(16, (3, 3), mean=MEAN), ValueError, "mean, std: expected both", id="mean-only"),
    pytest.param(lambda: MLPGate(16, (3, 3), mean=(1,), std=(1,)), ValueError, "mean: expected three", id="one-mean"),
    pytest.param(lambda: make_gate("entropy", 16, (3, 3), MEAN, (1, 0, 1)), ValueError, "std: .* above zero", id="std"),
    pytest.param(
        lambda: MLPGate(16, (3, 3), mean=(0, math.inf, 0), std=STD), ValueError, "mean: expected finite", id="mean-inf"
    ),
    pytest.param(
        lambda: MLPGate(16, (3, 3))(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)),
        ValueError,
        "expected floats, since the gate has no mean and std",
        id="uint8",
    ),
    pytest.param(lambda: RadialGate(16)(torch.zeros(1, 3, 40, 48)), ValueError, "multiples of 16", id="size"),
    pytest.param(lambda: RadialGate(16)(torch.zeros(3, 48, 48)), ValueError, r"\[batch, 3, H, W\]", id="ndim"),
    pytest.param(lambda: RadialGate(16, -1), ValueError, "radius: expected 0 or more, got -1", id="radius"),
    pytest.param(lambda: RandomGate(16, 1.0), ValueError, r"probability: .*\(0, 1\), got 1.0", id="probability"),
    pytest.param(lambda: ConstantGate(16, 0.0), ValueError, r"fine: .*inside \(0, 1\), got 0.0", id="constant"),
    pytest.param(lambda: EntropyGate(16, bins=1), ValueError, "bins: expected 2 or more, got 1", id="bins"),
    pytest.param(lambda: EntropyGate(16, threshold=7), ValueError, "threshold: expected 0 to 6.0 bits", id="threshold"),
]


@pytest.mark.parametrize(("call", "error", "words"), WRONG_CALLS)
def test_wrong_call(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
