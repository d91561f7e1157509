"""Batch-shaping (BaS): fits the distribution of the gate's outputs over a batch to a prior (eq. 8)."""

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


class BatchShapingLoss(nn.Module):
    """Distance between the gate's outputs over a batch and a relaxed Bernoulli prior.

        L = 1/Nc sum_i 1/B sum_b (F(z_(b)i) - b / (B + 1))^2,   F(z) = sigmoid(tau z - logit(g*))

    with z_(1)i <= ... <= z_(B)i, the sorted logits of position i.

    Args:
        target: g*, the prior's probability of a fine region, inside (0, 1).
        temperature: tau of the prior; a lower value moves its samples closer to 0 and 1.
        flatten: whether the prior applies to all positions and images together (eq. 8), so that a position may be
            constant. If False, it applies to each position over the batch.
        clip: bound that clips gate outputs to [clip, 1 - clip]; the authors' published loss uses 1e-3. Clipped outputs
            have no gradient. If None, every region has one.

    Raises:
        ValueError: a value is outside its range.
        TypeError: a value is not a number.

    Note:
        The loss is computed in fp32, even under autocast, and its gradient is exact for every logit. Under
        torch.distributed it uses the distribution of the global batch. Gradients averaged over processes, as in
        DistributedDataParallel, equal those of one process with the whole batch.
    """

    def __init__(
        self, target: float, temperature: float = 0.3, flatten: bool = False, clip: float | None = None
    ) -> None:
        super().__init__()
        self.target = check_share("target", target)
        self.temperature = check_positive("temperature", temperature)
        self.flatten = flatten
        self.clip = check_clip(clip)

    def forward(self, logits: Tensor) -> Tensor:
        """Maps the logits of the gate, [batch, positions], to the loss, 0-d."""
        check_logits(logits)
        with torch.autocast(logits.device.type, enabled=False):
            samples = global_batch(logits)
            rows = samples.flatten()[None] if self.flatten else samples.T
            mean_logit = samples.new_tensor(math.log(self.target) - math.log1p(-self.target))
            cdf = relaxed_bernoulli_cdf(rows.sort(dim=1).values, mean_logit, self.temperature, self.clip)
            return squared_distance(cdf).mean()
