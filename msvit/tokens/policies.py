"""Token policies, which choose the fine regions of a batch from the gate's logits.

A policy is called as `policy(logits, scale_factor)`. It returns the mask, and the number of fine regions if the host
knows it without waiting for the device. A known number keeps shapes static.
"""

import math
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from msvit_kernels.scales import region_tokens, tokens_gained

PER = ("batch", "image")


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
        TypeError: `probability` is not a number.
        ValueError: `probability` is outside [0, 1].

    Note:
        A region whose logit is NaN is coarse.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        _require_number("probability", self.probability)
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability: expected a value in [0, 1], got {self.probability}")

    def __call__(self, logits: Tensor, scale_factor: int) -> Selection:
        return Selection(logits > _logit(self.probability), None)

    def check(self, num_regions: int, scale_factor: int) -> None:
        """Any model can follow a threshold."""


@dataclass(frozen=True)
class Budget:
    """The highest-scoring regions of the whole batch, or of each image, become fine, as many as the budget allows.

        K = floor(n * (tokens_per_image - Nc) / (s*s - 1))   fine regions among n images,
        n * Nc + K * (s*s - 1)                               patch tokens of these images

    n is the batch size if `per` is "batch", and 1 if it is "image".

    Args:
        tokens_per_image: number of patch tokens per image, without prefix tokens, between Nc and Nf; the mean over the
            batch if `per` is "batch". A float counts as the decimal number that Python prints for it, so `Budget(55.3)`
            gives ten images 553 tokens. A `Fraction` gives numbers such as 149 / 3 exactly.
        per: "batch" or "image". With "batch", easy images give tokens to hard ones. With "image", all images get the
            same number of tokens, and the fine regions of an image do not depend on the other images.

    Raises:
        TypeError: `tokens_per_image` is not a number.
        ValueError: `tokens_per_image` is not positive and finite, or it is outside [Nc, Nf] of the model; `per` is
            neither "batch" nor "image".

    Note:
        Ties go to the image and region that come first; NaN ranks last. The number of tokens does not depend on the
        images, so the host does not wait for the device.
    """

    tokens_per_image: float
    per: str = "batch"
    # Numerator and denominator of `tokens_per_image`, because torch.compile cannot trace a Fraction.
    _exact: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        exact = _exact_number("tokens_per_image", self.tokens_per_image)
        if not exact > 0:
            raise ValueError(f"tokens_per_image: expected a positive number, got {self.tokens_per_image}")
        if self.per not in PER:
            raise ValueError(f"per: expected one of {', '.join(PER)}, got {self.per!r}")
        object.__setattr__(self, "_exact", exact.as_integer_ratio())

    def __call__(self, logits: Tensor, scale_factor: int) -> Selection:
        batch, num_regions = logits.shape[0], logits.shape[1] * logits.shape[2]
        per_image = self.per == "image"
        scores = logits.flatten(1) if per_image else logits.flatten()[None]  # [groups, regions of a group]
        num_fine = self._num_fine_of_group(1 if per_image else batch, num_regions, scale_factor)
        # Ascending order of the negated scores, because torch sorts NaN after all numbers.
        best = (-scores).argsort(dim=1, stable=True)[:, :num_fine]
        fine = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
        return Selection(fine.view(logits.shape), scores.shape[0] * num_fine)

    def num_fine(self, batch: int, num_regions: int, scale_factor: int) -> int:
        """Number of fine regions in a batch of images with `num_regions` regions each."""
        if self.per == "image":
            return batch * self._num_fine_of_group(1, num_regions, scale_factor)
        return self._num_fine_of_group(batch, num_regions, scale_factor)

    def _num_fine_of_group(self, images: int, num_regions: int, scale_factor: int) -> int:
        """K: number of fine regions of n images that share their tokens."""
        self.check(num_regions, scale_factor)
        tokens, per_images = self._exact
        return images * (tokens - num_regions * per_images) // (tokens_gained(scale_factor) * per_images)

    def check(self, num_regions: int, scale_factor: int) -> None:
        """Raises ValueError if `tokens_per_image` is outside [Nc, Nf]."""
        most = num_regions * region_tokens(1, scale_factor)
        tokens, per_images = self._exact
        if not num_regions * per_images <= tokens <= most * per_images:
            raise ValueError(
                f"tokens_per_image: expected {num_regions} (all coarse) to {most} (all fine), "
                f"got {self.tokens_per_image}"
            )


def _require_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real | Decimal):
        raise TypeError(f"{name}: expected a number, got {value!r}")


def _exact_number(name: str, value: Any) -> Fraction:
    """The decimal number that Python prints for `value`; numpy's floats print as Python's do."""
    _require_number(name, value)
    try:
        return Fraction(str(value))
    except ValueError as error:  # nan, inf
        raise ValueError(f"{name}: expected a positive number, got {value}") from error


def _logit(probability: float) -> float:
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability) - math.log1p(-probability)
