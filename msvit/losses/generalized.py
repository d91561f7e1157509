"""Generalized batch-shaping (GBaS): every position has a prior of its own, learned under a hyperprior (eq. 9)."""

import math

import torch
from torch import Tensor, nn

from msvit.losses.common import (
    check_clip,
    check_logits,
    check_positive,
    check_share,
    global_batch,
    relaxed_bernoulli_cdf,
    squared_distance,
)

# Centre initialisation keeps theta at least this far from 0 and 1, near which it would hardly learn.
_MARGIN = 0.05


class GeneralizedBatchShapingLoss(nn.Module):
    """Batch-shaping with one learned prior per position, and a Gaussian hyperprior on the priors.

        L = 1/Nc sum_i 1/B sum_b (F_i(z_(b)i) - b / (B + 1))^2
          + 1/Nc sum_i (Phi((theta_i - g*) / std) - rank(theta_i) / (Nc + 1))^2

    with F_i(z) = sigmoid(tau z - logit(theta_i)), sorted z, and ranks 1 to Nc (eq. 9). Equal theta get equal gradients,
    the mean over their possible orders.

    Args:
        target: g*, mean of the hyperprior, inside (0, 1).
        grid_size: (Hc, Wc), regions of an image.
        temperature: tau of the priors.
        hyperprior_std: standard deviation of the hyperprior; smaller values bring the loss closer to
            `BatchShapingLoss`.
        center_init: whether theta starts as one minus the normalised distance from the centre; otherwise at g*.
        clip: bound of gate outputs, as in `BatchShapingLoss`.
        reduction: "mean" over positions, as in the authors' published loss, or "sum", as in the printed eq. 9.

    Attributes:
        theta: [Hc * Wc], inside (0, 1), the learned probability of a fine region at each position, in raster order.

    Raises:
        ValueError: a value is outside its range.
        TypeError: a value has the wrong type.

    Note:
        Precision and distributed batches are as in `BatchShapingLoss`. An optimizer learns theta if it gets
        `loss.parameters()`.
    """

    def __init__(
        self,
        target: float,
        grid_size: tuple[int, int],
        temperature: float = 0.3,
        hyperprior_std: float = 0.1,
        center_init: bool = False,
        clip: float | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.target = check_share("target", target)
        self.grid_size = _check_grid(grid_size)
        self.temperature = check_positive("temperature", temperature)
        self.hyperprior_std = check_positive("hyperprior_std", hyperprior_std)
        self.clip = check_clip(clip)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
        self.reduction = reduction
        positions = self.grid_size[0] * self.grid_size[1]
        if center_init:
            theta = _MARGIN + (1 - 2 * _MARGIN) * (1 - center_distances(self.grid_size))
            logits = torch.logit(theta)
        else:
            logits = torch.full((positions,), math.log(self.target) - math.log1p(-self.target))
        self.theta_logit = nn.Parameter(logits)

    @property
    def theta(self) -> Tensor:
        return self.theta_logit.sigmoid()

    def forward(self, logits: Tensor) -> Tensor:
        """Maps the logits of the gate, [batch, Hc * Wc], to the loss, 0-d."""
        check_logits(logits, self.theta_logit.numel())
        with torch.autocast(logits.device.type, enabled=False):
            samples = global_batch(logits).T.sort(dim=1).values
            mean_logit = self.theta_logit.to(torch.promote_types(self.theta_logit.dtype, torch.float32))
            distances = squared_distance(
                relaxed_bernoulli_cdf(samples, mean_logit[:, None], self.temperature, self.clip)
            )
            shaping = distances.mean() if self.reduction == "mean" else distances.sum()
            return shaping + self._hyperprior_distance(mean_logit)

    def _hyperprior_distance(self, mean_logit: Tensor) -> Tensor:
        theta = mean_logit.sigmoid()
        # A sort would rank priors that start equal by their position. With the mean of their ranks instead, the
        # distance differs from the sorted one by a constant, which the last term adds.
        below, other = theta.detach()[:, None] > theta.detach(), theta.detach()[:, None] != theta.detach()
        rank = (below.sum(1) + (~other).sum(1).add(1) / 2).to(theta.dtype) / (len(theta) + 1)
        in_order = torch.arange(1, len(theta) + 1, dtype=theta.dtype, device=theta.device) / (len(theta) + 1)
        cdf = torch.special.ndtr((theta - self.target) / self.hyperprior_std)
        return (cdf - rank).square().mean() + (in_order.square().mean() - rank.square().mean())


def center_distances(grid_size: tuple[int, int]) -> Tensor:
    """Computes the distances of regions' centres from the centre of the image, divided by the largest.

    The distance along each axis is measured in units of half the image's height or width.

    Args:
        grid_size: (Hc, Wc), regions of an image.

    Returns:
        fp32 [Hc * Wc] in [0, 1], in raster order; all 0 for a single region.
    """
    height, width = grid_size
    y, x = ((2 * torch.arange(n, dtype=torch.float32) + 1 - n) / n for n in (height, width))
    distances = torch.hypot(y[:, None], x[None]).flatten()
    largest = distances.max()
    return distances / largest if largest > 0 else distances


def _check_grid(grid_size: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(grid_size, (tuple, list)) or len(grid_size) != 2:
        raise TypeError(f"grid_size: expected (Hc, Wc), got {grid_size!r}")
    for size in grid_size:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"grid_size: expected two integers, got {grid_size!r}")
    height, width = grid_size
    if min(height, width) < 1:
        raise ValueError(f"grid_size: expected two positive integers, got {grid_size!r}")
    return height, width
