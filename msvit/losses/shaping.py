"""Batch-shaping (BaS): the outputs of the gate over a batch should be distributed as a prior says (eq. 8)."""

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
        temperature: tau of the prior; the lower, the closer to 0 and 1 its values are.
        flatten: False: each position follows the prior over the batch; True: all positions and images together do
            (eq. 8), which leaves positions free to be constant.
        clip: clips gate outputs to [clip, 1 - clip]; the authors' published loss has 1e-3. Clipped outputs have no
            gradient; with None, the default, every region has one.

    Raises:
        ValueError: a value outside its range.
        TypeError: a value is not a number.

    Note:
        Computed in fp32, under autocast too, with gradients exact for every logit. Under torch.distributed the
        distribution is that of the global batch; gradients averaged over processes, as DistributedDataParallel does,
        are those of one process with the whole batch.
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
        """Logits [batch, positions] of the gate -> loss, 0-d."""
        check_logits(logits)
        with torch.autocast(logits.device.type, enabled=False):
            samples = global_batch(logits)
            rows = samples.flatten()[None] if self.flatten else samples.T
            mean_logit = samples.new_tensor(math.log(self.target) - math.log1p(-self.target))
            cdf = relaxed_bernoulli_cdf(rows.sort(dim=1).values, mean_logit, self.temperature, self.clip)
            return squared_distance(cdf).mean()
