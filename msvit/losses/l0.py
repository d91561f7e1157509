"""The L0 loss (eq. 7): a penalty for images with more fine regions than the target."""

from torch import Tensor, nn

from msvit.losses.common import check_logits, check_share, global_batch


class L0Loss(nn.Module):
    """Penalises an image whose mean gate output is above the target, and not one below it.

        L = 1/B sum_b max(0, 1/Nc sum_i m_bi - g*),   m = sigmoid(logits)         (eq. 7, whose printed min is a typo)

    Args:
        target: g*, share of fine regions, inside (0, 1).

    Raises:
        ValueError: `target` is outside (0, 1).
        TypeError: `target` is not a number.

    Note:
        The loss is computed in fp32, even under autocast. Under torch.distributed the mean is over the images of
        all processes.
    """

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = check_share("target", target)

    def forward(self, logits: Tensor) -> Tensor:
        """Maps the logits of the gate, [batch, positions], to the loss, 0-d."""
        check_logits(logits)
        share = global_batch(logits).sigmoid().mean(1)
        return (share - self.target).clamp(min=0).mean()
