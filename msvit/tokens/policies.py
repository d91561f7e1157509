"""Token policies, which choose the fine regions of a batch from the gate's logits.

A policy is called as `policy(logits, scale_factor)`. It returns the mask, and the number of fine regions if the host
knows it without waiting for the device. A known number keeps shapes static.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from msvit_kernels.scales import region_tokens, tokens_gained


class Selection(NamedTuple):
    """The choice of a policy.

    Attributes:
        fine_mask: bool [batch, Hc, Wc].
        num_fine: number of fine regions of the batch; None if only the device knows it.
    """

    fine_mask: Tensor
    num_fine: int | None


class Policy(Protocol):
    """The interface of `model.policy`."""

    def __call__(self, logits: Tensor, scale_factor: int) -> Selection: ...

    def check(self, num_regions: int, scale_factor: int) -> None:
        """Raises ValueError if a model with `num_regions` regions per image cannot follow the policy."""


@dataclass(frozen=True)
class Threshold:
    """A region is fine if the gate's probability exceeds `probability`: `sigmoid(logit) > probability`.

    Args:
        probability: threshold in [0, 1]; 0.5 means logit > 0.

    Raises:
        ValueError: `probability` is outside [0, 1].
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability: expected a value in [0, 1], got {self.probability}")

    def __call__(self, logits: Tensor, scale_factor: int) -> Selection:
        return Selection(logits > _logit(self.probability), None)

    def check(self, num_regions: int, scale_factor: int) -> None:
        """Any model can follow a threshold."""


@dataclass(frozen=True)
class Budget:
    """The highest-scoring regions of the whole batch become fine, as many as the budget allows.

        K = floor(batch * (tokens_per_image - Nc) / (s*s - 1))   fine regions,
        batch * Nc + K * (s*s - 1)                               patch tokens in the batch

    Args:
        tokens_per_image: mean number of patch tokens per image, without prefix tokens, between Nc and Nf.

    Raises:
        ValueError: `tokens_per_image` is not positive and finite, or it is outside [Nc, Nf] of the model.

    Note:
        Ties go to the image and region that come first. The number of tokens does not depend on the images, so the host
        does not wait for the device.
    """

    tokens_per_image: float

    def __post_init__(self) -> None:
        if not self.tokens_per_image > 0 or math.isinf(self.tokens_per_image):
            raise ValueError(f"tokens_per_image: expected a positive number, got {self.tokens_per_image}")

    def __call__(self, logits: Tensor, scale_factor: int) -> Selection:
        batch, num_regions = logits.shape[0], logits[0].numel() if logits.shape[0] else 0
        if batch == 0:
            return Selection(torch.zeros_like(logits, dtype=torch.bool), 0)
        num_fine = self.num_fine(batch, num_regions, scale_factor)
        order = logits.flatten().argsort(descending=True, stable=True)
        fine = torch.zeros(logits.numel(), dtype=torch.bool, device=logits.device)
        fine.scatter_(0, order[:num_fine], True)
        return Selection(fine.view(logits.shape), num_fine)

    def num_fine(self, batch: int, num_regions: int, scale_factor: int) -> int:
        """K: number of fine regions in a batch of images with `num_regions` regions each."""
        self.check(num_regions, scale_factor)
        return int(batch * (self.tokens_per_image - num_regions) // tokens_gained(scale_factor))

    def check(self, num_regions: int, scale_factor: int) -> None:
        """Raises ValueError if `tokens_per_image` is outside [Nc, Nf]."""
        most = num_regions * region_tokens(1, scale_factor)
        if not num_regions <= self.tokens_per_image <= most:
            raise ValueError(
                f"tokens_per_image: expected {num_regions} (all coarse) to {most} (all fine), "
                f"got {self.tokens_per_image}"
            )


def _logit(probability: float) -> float:
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)
