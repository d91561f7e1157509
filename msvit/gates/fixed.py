"""Gates that ignore the pixels: radial (appendix G.1 of the MSViT paper), random and constant."""

import math

import torch
from torch import Tensor, nn

from msvit.gates.base import INITIAL_LOGIT, Gate


class RadialGate(Gate):
    """Makes regions near the centre fine: logit = radius - distance of the region's centre from that of the image.

    Args:
        coarse: width of a region in pixels.
        radius: radius in units of half the image's height and width, so that the middle of an edge is at 1 and a corner
            at sqrt(2).

    Raises:
        ValueError: `radius` is negative.
    """

    def __init__(self, coarse: int, radius: float = 0.75) -> None:
        super().__init__(coarse)
        if radius < 0:
            raise ValueError(f"radius: expected 0 or more, got {radius}")
        self.radius = radius

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, Hc, Wc], the same for every image."""
        batch, height, width = self.regions(images)
        y, x = ((2 * torch.arange(n, dtype=torch.float32, device=images.device) + 1) / n - 1 for n in (height, width))
        return (self.radius - torch.hypot(y[:, None], x[None])).expand(batch, -1, -1)


class RandomGate(Gate):
    """Makes each region fine with a given probability: logit = logit(probability) + logistic noise.

    Args:
        coarse: width of a region in pixels.
        probability: probability in (0, 1) that a logit is positive.
        seed: seed of the gate's own generator; `reset()` restarts its sequence.

    Raises:
        ValueError: `probability` is outside (0, 1).
    """

    def __init__(self, coarse: int, probability: float = 0.5, seed: int = 0) -> None:
        super().__init__(coarse)
        self.bias = _logit("probability", probability)
        self.seed = seed
        self.reset()

    def reset(self) -> None:
        """Restarts the sequence of random masks at `seed`."""
        # On the CPU, so that the masks do not depend on the device.
        self.generator = torch.Generator().manual_seed(self.seed)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, Hc, Wc], new ones at every call."""
        uniform = torch.rand(self.regions(images), generator=self.generator).clamp(1e-6, 1 - 1e-6)
        return (self.bias + torch.logit(uniform)).to(images.device)


def reset_noise(gate: nn.Module, seed: int) -> None:
    """Restarts the sequence of masks of a random gate at a seed; other gates are left unchanged."""
    if isinstance(gate, RandomGate):
        gate.seed = seed
        gate.reset()


class ConstantGate(Gate):
    """Gives all regions the same logit.

    Args:
        coarse: width of a region in pixels.
        fine: True for fine, False for coarse (probability 0.95 and 0.05), or the probability itself, in (0, 1).

    Raises:
        ValueError: `fine` is a number outside (0, 1).
    """

    def __init__(self, coarse: int, fine: bool | float = True) -> None:
        super().__init__(coarse)
        self.logit = (INITIAL_LOGIT if fine else -INITIAL_LOGIT) if isinstance(fine, bool) else _logit("fine", fine)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, Hc, Wc]."""
        return torch.full(self.regions(images), self.logit, dtype=torch.float32, device=images.device)


def _logit(name: str, probability: float) -> float:
    if not 0 < probability < 1:
        raise ValueError(f"{name}: expected a value inside (0, 1), got {probability}")
    return math.log(probability) - math.log1p(-probability)
