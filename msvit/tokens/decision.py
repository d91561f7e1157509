"""The decision: which regions of a batch become fine, and how many tokens its images get by that.

Models, losses and reports ask a decision for counts and for the layout and do not look at its mask, so that regions may
come to have more than two scales without them.
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
        scales: the candidates that it chooses from.
        num_fine: fine regions of the batch if the host knows them, else None.
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
        """Where the active tokens lie once they are packed."""
        return mixed_scale_layout(
            self.fine_mask,
            scale_factor=self.scales.scale_factor,
            num_prefix=self.scales.num_prefix,
            total_tokens=self.total_tokens,
        )


def take_decision(gate: nn.Module, policy: Policy, logits: Tensor, scales: Scales) -> Decision:
    """From the logits of a gate to its decision: noise in training, then the policy (eq. 1, 2).

    Args:
        gate: whose `sample` adds the noise and whose `temperature` the gradient is taken at, if it has them.
        policy: which regions become fine, given the logits.
        logits: [batch, Hc, Wc], of that gate.
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
