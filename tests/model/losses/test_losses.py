"""The gate losses: their formulas, their values at a match, their gradients, one process against two."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.autograd import gradcheck

from msvit.losses import BatchShapingLoss, GeneralizedBatchShapingLoss, L0Loss, center_distances

LOSSES = [
    pytest.param(lambda: L0Loss(0.25), id="l0"),
    pytest.param(lambda: BatchShapingLoss(0.25), id="bas"),
    pytest.param(lambda: BatchShapingLoss(0.25, flatten=True), id="bas-flat"),
    pytest.param(lambda: BatchShapingLoss(0.25, clip=0.1), id="bas-clip"),
    pytest.param(lambda: GeneralizedBatchShapingLoss(0.25, (2, 3)), id="gbas"),
    pytest.param(lambda: GeneralizedBatchShapingLoss(0.25, (2, 3), center_init=True, reduction="sum"), id="gbas-sum"),
]


def prior_samples(mu: float | Tensor, temperature: float, shape: tuple[int, ...]) -> Tensor:
    """Logits of relaxed Bernoulli variables: (logit(mu) + logistic noise) / tau."""
    mu = torch.as_tensor(mu, dtype=torch.float64)
    noise = torch.logit(torch.rand(shape, dtype=torch.float64))
    return (torch.logit(mu) + noise) / temperature


def by_hand(logits: Tensor, mu: np.ndarray, temperature: float, clip: float | None = None) -> np.ndarray:
    """Distance of each column of logits [n, positions], from gate outputs in (0, 1), one sample at a time."""
    outputs = 1 / (1 + np.exp(-logits.double().numpy()))
    if clip is not None:
        outputs = outputs.clip(clip, 1 - clip)
    distances = []
    for column, mean in zip(outputs.T, mu, strict=True):
        total = 0.0
        for rank, m in enumerate(sorted(column), start=1):
            log_a = temperature * (math.log(1 - m) - math.log(m))
            cdf = 1 / (1 + math.exp(log_a + math.log(mean / (1 - mean))))
            total += (cdf - rank / (len(column) + 1)) ** 2
        distances.append(total / len(column))
    return np.array(distances)


@pytest.mark.parametrize("clip", [None, 1e-3, 0.2], ids=lambda clip: f"clip={clip}")
def test_batch_shaping_is_the_formula(clip: float | None) -> None:
    logits = 3 * torch.randn(17, 4)
    expected = by_hand(logits, np.full(4, 0.3), 0.4, clip).mean()
    assert BatchShapingLoss(0.3, 0.4, clip=clip)(logits).item() == pytest.approx(expected, rel=1e-5)
    expected = by_hand(logits.flatten()[:, None], np.full(1, 0.3), 0.4, clip).mean()
    assert BatchShapingLoss(0.3, 0.4, flatten=True, clip=clip)(logits).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_generalized_batch_shaping_is_the_formula(reduction: str) -> None:
    logits = 3 * torch.randn(17, 6)
    loss = GeneralizedBatchShapingLoss(0.3, (2, 3), hyperprior_std=0.2, reduction=reduction)
    loss.theta_logit.data += torch.randn(6)
    theta = np.sort(loss.theta.detach().double().numpy())
    ranks = np.arange(1, 7) / 7
    hyperprior = ((stats.norm(0.3, 0.2).cdf(theta) - ranks) ** 2).mean()
    positions = by_hand(logits, loss.theta.detach().double().numpy(), 0.3)
    expected = getattr(positions, reduction)() + hyperprior
    assert loss(logits).item() == pytest.approx(expected, rel=1e-5)


def test_l0_is_zero_below_the_target_and_linear_above() -> None:
    loss = L0Loss(0.5)
    below = torch.full((3, 4), -1.0, requires_grad=True)
    loss(below).backward()
    assert loss(below).item() == 0
    assert below.grad is not None
    assert below.grad.abs().max() == 0
    images = torch.tensor([[20.0, 20, -20, 20], [-20.0, 20, -20, -20]])
    assert loss(images).item() == pytest.approx((0.25 + 0) / 2), "an image below does not make up for one above"


@pytest.mark.parametrize("mu", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_the_prior_is_fine_with_probability_mu(mu: float, temperature: float) -> None:
    """P(m > 0.5) = mu, by the distribution function that the loss uses and by samples from the prior."""
    samples = prior_samples(mu, temperature, (200_000,))
    assert (samples > 0).double().mean().item() == pytest.approx(mu, abs=4 * math.sqrt(mu * (1 - mu) / 200_000))
    # n logits at 0: F(0) = 1 - mu at every rank.
    n = 99
    ranks = torch.arange(1, n + 1).double() / (n + 1)
    expected = (1 - mu - ranks).square().mean().item()
    at_zero = BatchShapingLoss(mu, temperature)(torch.zeros(n, 1, dtype=torch.float64))
    assert at_zero.item() == pytest.approx(expected, rel=1e-9)


def _at_match(batch: int, runs: int) -> dict[str, tuple[float, float, float]]:
    """Mean loss over draws from the priors, its standard error, and what is expected."""
    positions, values = 5, {"bas": [], "bas-flat": [], "gbas": []}
    gbas = GeneralizedBatchShapingLoss(0.25, (1, positions), center_init=True).double()
    constant = gbas._hyperprior_distance(gbas.theta_logit).item()
    for _ in range(runs):
        samples = prior_samples(0.25, 0.3, (batch, positions))
        values["bas"].append(BatchShapingLoss(0.25)(samples).item())
        values["bas-flat"].append(BatchShapingLoss(0.25, flatten=True)(samples).item())
        values["gbas"].append(gbas(prior_samples(gbas.theta.detach(), 0.3, (batch, positions))).item() - constant)
    sizes = {"bas": batch, "bas-flat": batch * positions, "gbas": batch}
    return {
        name: (float(np.mean(v)), float(np.std(v) / math.sqrt(runs)), 1 / (6 * (sizes[name] + 1)))
        for name, v in values.items()
    }


def test_expected_loss_at_a_match() -> None:
    """1 / (6 (N + 1)) where the gate's outputs are drawn from the priors."""
    for mean, error, expected in _at_match(batch=64, runs=400).values():
        assert abs(mean - expected) < 4 * error
        assert error < 0.1 * expected, "the test must be able to tell"


def test_expected_hyperprior_term_at_a_match() -> None:
    values = []
    for _ in range(400):
        loss = GeneralizedBatchShapingLoss(0.5, (5, 10), hyperprior_std=0.1).double()
        with torch.no_grad():
            loss.theta_logit.copy_(torch.logit(0.5 + 0.1 * torch.randn(50, dtype=torch.float64)))
        values.append(loss._hyperprior_distance(loss.theta_logit).item())
    assert abs(np.mean(values) - 1 / (6 * 51)) < 4 * np.std(values) / math.sqrt(len(values))


@pytest.mark.parametrize("make", LOSSES)
def test_gradcheck(make) -> None:
    torch.manual_seed(3)
    loss = make().double()
    for theta in loss.parameters():  # equal priors have a kink there
        theta.data += 0.1 * torch.randn_like(theta)
    logits = (2 * torch.randn(7, 6, dtype=torch.float64) + 0.5).requires_grad_()
    names = [name for name, _ in loss.named_parameters()]

    def run(logits: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(loss, dict(zip(names, parameters, strict=True)), (logits,))

    assert gradcheck(run, (logits, *loss.parameters()))
    assert loss(logits).item() > 0


def test_every_logit_has_a_gradient_without_clip_and_few_with_it() -> None:
    """Where the gate matches the prior, the published clip silences more than half of the samples at mu = 0.1."""
    samples = prior_samples(0.1, 0.3, (512, 1)).float()
    silent = {}
    for clip in (None, 1e-3):
        logits = samples.clone().requires_grad_()
        BatchShapingLoss(0.1, clip=clip)(logits).backward()
        assert logits.grad is not None
        silent[clip] = (logits.grad == 0).float().mean().item()
    assert silent[None] == 0
    assert silent[1e-3] > 0.5


@pytest.mark.parametrize("make", LOSSES)
def test_always_fp32(make) -> None:
    loss = make()
    logits = (3 * torch.randn(8, 6)).bfloat16()
    expected = loss(logits.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(logits.requires_grad_())
    assert (result.dtype, result.ndim) == (torch.float32, 0)
    assert torch.equal(result, expected)
    result.backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_theta_is_learned_inside_zero_and_one() -> None:
    """Optimised alone, the priors spread as the hyperprior says; with a gate, they follow it where it insists."""
    loss = GeneralizedBatchShapingLoss(0.25, (7, 7))
    assert loss.theta.shape == (49,)
    assert loss.theta.mean().item() == pytest.approx(0.25, abs=0.01)
    logits = prior_samples(torch.tensor([0.6] * 10 + [0.2] * 39), 0.3, (256, 49)).float()
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss(logits).backward()
        optimizer.step()
    theta = loss.theta.detach()
    assert 0 < theta.min() < theta.max() < 1
    assert theta[:10].mean() > theta[10:].mean() + 0.1


def test_gate_reaches_the_target() -> None:
    """Free logits, optimised by the loss alone, are fine as often as the target says, at every position."""
    logits = nn.Parameter(torch.randn(256, 4) + 3)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    loss = BatchShapingLoss(0.25)
    for _ in range(400):
        optimizer.zero_grad()
        loss(logits).backward()
        optimizer.step()
    assert ((logits > 0).float().mean(0) - 0.25).abs().max() < 0.02


def test_equal_priors_are_treated_alike() -> None:
    """Symmetric positions have the same theta and the same gradient; equal ones at g* have none."""
    loss = GeneralizedBatchShapingLoss(0.25, (3, 3), center_init=True)
    loss._hyperprior_distance(loss.theta_logit).backward()
    assert loss.theta_logit.grad is not None
    grad = loss.theta_logit.grad.view(3, 3)
    assert torch.equal(grad, grad.T)
    assert torch.equal(grad, grad.flip(0))
    assert len(grad.unique()) == 3
    fresh = GeneralizedBatchShapingLoss(0.25, (3, 3)).double()
    value = fresh._hyperprior_distance(fresh.theta_logit)
    value.backward()
    assert fresh.theta_logit.grad is not None
    assert fresh.theta_logit.grad.abs().max() < 1e-7
    assert value.item() == pytest.approx(((0.5 - torch.arange(1, 10) / 10) ** 2).mean().item(), rel=1e-6), "sorted"


def test_center_initialisation() -> None:
    distances = center_distances((5, 7)).view(5, 7)
    assert (distances[2, 3], distances[0, 0]) == (0, 1)
    assert torch.equal(distances, distances.flip(0))
    assert torch.equal(distances, distances.flip(1))
    theta = GeneralizedBatchShapingLoss(0.25, (5, 7), center_init=True).theta.view(5, 7)
    assert 0 < theta[0, 0] < theta[1, 1] < theta[2, 3] < 1
    assert center_distances((1, 1)).tolist() == [0]


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, math.nan])
def test_targets_outside_zero_and_one(value: float) -> None:
    for make in (L0Loss, BatchShapingLoss, lambda target: GeneralizedBatchShapingLoss(target, (2, 2))):
        with pytest.raises(ValueError, match=r"target: expected a number inside \(0, 1\), got"):
            make(value)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: L0Loss("0.5"), TypeError, "target: expected a number, got str"),
        (lambda: L0Loss(True), TypeError, "target: expected a number, got bool"),
        (lambda: BatchShapingLoss(0.5, temperature=0), ValueError, "temperature: expected a positive number, got 0"),
        (lambda: BatchShapingLoss(0.5, clip=0.5), ValueError, "clip: expected None or a number inside"),
        (lambda: GeneralizedBatchShapingLoss(0.5, 49), TypeError, r"grid_size: expected \(Hc, Wc\), got 49"),
        (lambda: GeneralizedBatchShapingLoss(0.5, (7, 7.0)), TypeError, "grid_size: expected two integers"),
        (lambda: GeneralizedBatchShapingLoss(0.5, (0, 7)), ValueError, "grid_size: expected two positive"),
        (lambda: GeneralizedBatchShapingLoss(0.5, (7, 7), hyperprior_std=-1), ValueError, "hyperprior_std: expected"),
        (lambda: GeneralizedBatchShapingLoss(0.5, (7, 7), reduction="max"), ValueError, "reduction: expected 'mean'"),
        (lambda: L0Loss(0.5)([[1.0]]), TypeError, "logits: expected a tensor, got list"),
        (
            lambda: L0Loss(0.5)(torch.ones(2, 2, dtype=torch.long)),
            TypeError,
            "logits: expected floats, got torch.int64",
        ),
        (lambda: L0Loss(0.5)(torch.ones(2, 7, 7)), ValueError, r"shape \[batch, positions\], got \[2, 7, 7\]"),
        (lambda: BatchShapingLoss(0.5)(torch.ones(2, 0)), ValueError, r"shape \[batch, positions\], got \[2, 0\]"),
        (lambda: BatchShapingLoss(0.5)(torch.ones(0, 3)), ValueError, "at least one image"),
        (
            lambda: GeneralizedBatchShapingLoss(0.5, (2, 3))(torch.ones(2, 7)),
            ValueError,
            r"shape \[batch, 6\], got \[2, 7\]",
        ),
    ],
)
def test_errors(make, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
