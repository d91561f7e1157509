"""The base class of all gates: the size of a region, and the normalisation of images."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# sigmoid(INITIAL_LOGIT) = 0.95: a learned gate starts with fine regions but still gets gradients.
INITIAL_LOGIT = math.log(0.95 / 0.05)


class Gate(nn.Module):
    """Base class of gates.

    Args:
        coarse: width of a region in pixels.
        mean, std: three floats each, per-channel mean and standard deviation of pixels in [0, 1], by which the gate's
            images are normalised; None if they are not normalised.

    Raises:
        ValueError: `coarse` is not positive, or `mean` and `std` are not as `check_normalisation` expects them.
    """

    mean: Tensor | None
    std: Tensor | None

    def __init__(self, coarse: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        if coarse < 1:
            raise ValueError(f"coarse: expected a positive number of pixels, got {coarse}")
        check_normalisation(mean, std)
        self.coarse = coarse
        # Constants of the input and not state, so checkpoints do not contain them.
        self.register_buffer("mean", None if mean is None else torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", None if std is None else torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image."""
        return 0

    def sample(self, logits: Tensor) -> Tensor:
        """The logits on which the decision is based; a gate that explores in training adds noise to `logits` here."""
        return logits

    def regions(self, images: Tensor) -> tuple[int, int, int]:
        """Returns the number of images and their grid of regions.

        Args:
            images: [batch, 3, H, W].

        Returns:
            (batch, Hc, Wc).

        Raises:
            ValueError: `images` has another shape, or regions do not divide its height or width.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % self.coarse or images.shape[3] % self.coarse:
            raise ValueError(
                f"images: expected [batch, 3, H, W] with H and W multiples of {self.coarse}, got {[*images.shape]}"
            )
        return images.shape[0], images.shape[2] // self.coarse, images.shape[3] // self.coarse


def check_normalisation(mean: Any, std: Any) -> None:
    """Raises ValueError unless `mean` and `std` are None, or three finite numbers each, those of `std` above zero."""
    if (mean is None) != (std is None):
        raise ValueError(f"mean, std: expected both or neither, got mean={mean} and std={std}")
    if mean is None:
        return
    for name, values in (("mean", mean), ("std", std)):
        try:
            finite = [math.isfinite(value) for value in values]
        except (TypeError, ValueError, OverflowError):
            finite = []
        if len(finite) != 3:
            raise ValueError(f"{name}: expected three values, one per channel, got {values!r}")
        if not all(finite):
            raise ValueError(f"{name}: expected finite numbers, got {values!r}")
    if min(std) <= 0:
        raise ValueError(f"std: expected numbers above zero, got {std!r}")
