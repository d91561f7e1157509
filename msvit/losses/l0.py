"""The L0 loss (eq. 7): a penalty for images with more fine regions than the target."""

from torch import Tensor, nn

from msvit.losses.common import check_logits, check_share, global_batch


class L0Loss(nn.Module):
    """Penalises the mean gate output of an image above the target, and nothing below it.

        L = 1/B sum_b max(0, 1/Nc sum_i m_bi - g*),   m = sigmoid(logits)         (eq. 7, whose printed min is a slip)

    Args:
        target: g*, share of fine regions, inside (0, 1).

    Raises:
        ValueError: `target` is outside (0, 1).
        TypeError: `target` is not a number.

    Note:
        Computed in fp32, under autocast too. Under torch.distributed the mean is over the images of all processes.
    """

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = check_share("target", target)

    def forward(self, logits: Tensor) -> Tensor:
        """Logits [batch, positions] of the gate -> loss, 0-d."""
        check_logits(logits)
        share = global_batch(logits).sigmoid().mean(1)
        return (share - self.target).clamp(min=0).mean()
