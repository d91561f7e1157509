"""The decision: which regions of a batch become fine, and how many tokens its images have.

Models, losses and reports ask a decision for its counts and its layout and never look at its mask, so more than two
scales per region would not change them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msvit.gates import Gate
from msvit.tokens.policies import Policy
from msvit.tokens.sequences import softmax_dtype
from msvit_kernels import MixedScaleLayout, Scales, mixed_scale_layout


@dataclass(frozen=True)
class Decision:
    """Which regions are fine.

    Attributes:
        fine_mask: bool [batch, Hc, Wc].
        scales: the candidates of an image, among which it chooses.
        num_fine: number of fine regions of the batch if the host knows it, else None.
        fine_weight: [batch, Hc, Wc], `fine_mask` as 0 or 1 with the straight-through gradient of the gate (eq. 2);
            None if no gate gradient is asked for.
    """

    fine_mask: Tensor
    scales: Scales
    num_fine: int | None = None
    fine_weight: Tensor | None = None

    @property
    def total_tokens(self) -> int | None:
        """Packed rows of the batch, prefix included, if the host knows them."""
        return None if self.num_fine is None else self.scales.total_tokens(len(self.fine_mask), self.num_fine)

    def num_patches(self) -> Tensor:
        """int64 [batch]: patch tokens of each image."""
        return self.scales.patches(self.fine_mask.flatten(1).sum(1))

    def fine_shares(self) -> Tensor:
        """fp32 [batch]: share of fine regions of each image."""
        return self.fine_mask.flatten(1).sum(1) / self.scales.num_regions

    def patches_per_image(self) -> Tensor:
        """fp32, 0-d: patch tokens per image of the batch."""
        return self.scales.mean_patches(self.fine_mask.float().mean())

    def layout(self) -> MixedScaleLayout:
        """The packing of the active tokens."""
        return mixed_scale_layout(
            self.fine_mask,
            scale_factor=self.scales.scale_factor,
            num_prefix=self.scales.num_prefix,
            total_tokens=self.total_tokens,
        )


def given_decision(fine_mask: Tensor, images: Tensor, scales: Scales) -> Decision:
    """The decision that a caller took in place of a gate.

    Args:
        fine_mask: bool [batch, Hc, Wc], on the device of the images.
        images: [batch, ...].
        scales: the candidates of an image.

    Returns:
        The decision, without a weight for the gate's gradient.

    Raises:
        TypeError, ValueError: a mask of another type, dtype, shape or device.
    """
    check_regions("fine_mask", fine_mask, images, scales)
    if fine_mask.dtype != torch.bool:
        raise TypeError(f"fine_mask: expected dtype bool, got {fine_mask.dtype}")
    return Decision(fine_mask, scales)


def check_regions(name: str, values: Any, images: Tensor, scales: Scales) -> None:
    """Raises unless `values` are a tensor with one value for each region of each image, on the device of the images."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(values).__name__}")
    expected = (images.shape[0], *scales.regions)
    if tuple(values.shape) != expected:
        raise ValueError(f"{name}: expected shape {[*expected]}, got {[*values.shape]}")
    if values.device != images.device:
        raise ValueError(f"{name}: expected device {images.device}, that of the images, got {values.device}")


def take_decision(gate: nn.Module, policy: Policy, logits: Tensor, scales: Scales) -> Decision:
    """Turns the logits of a gate into a decision: noise in training, then the policy (eq. 1, 2).

    Args:
        gate: the module that gave the logits. If it is a `Gate`, its `sample` adds the noise; the gradient is that of
            a sigmoid at its `temperature`, 1 if it has none.
        policy: which regions become fine, given the logits.
        logits: [batch, Hc, Wc].
        scales: the candidates of an image.

    Returns:
        The decision; with its straight-through weight if the logits have a gradient.
    """
    wants_gradient = logits.requires_grad and torch.is_grad_enabled()
    if isinstance(gate, Gate):
        logits = gate.sample(logits)
    fine_mask, num_fine = policy(logits.detach(), scales.scale_factor)
    if not wants_gradient:
        return Decision(fine_mask, scales, num_fine)
    temperature: Any = getattr(gate, "temperature", 1.0)
    soft = torch.sigmoid(logits.to(softmax_dtype(logits)) / temperature)
    # The value of the mask, the gradient of the soft gate.
    return Decision(fine_mask, scales, num_fine, fine_mask.to(soft.dtype) + (soft - soft.detach()))
