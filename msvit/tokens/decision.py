"""The decision: which regions of a batch become fine, and how many tokens its images have.

Models, losses and reports use the counts and the layout of a decision and not its mask, so more than two scales per
region would not change them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msvit.gates import Gate
from msvit.tokens.policies import Policy
from msvit.tokens.sequences import softmax_dtype
from msvit_kernels import MixedScaleLayout, Scales, consistency, mixed_scale_layout


@dataclass(frozen=True)
class Decision:
    """Which regions are fine.

    Attributes:
        fine_mask: bool [batch, Hc, Wc].
        scales: the candidate tokens of an image.
        num_fine: number of fine regions of the batch if the host knows it, else None.
        fine_weight: floats [batch, Hc, Wc], `fine_mask` as 0 or 1 with the straight-through gradient of the gate
            (eq. 2); None if the gate needs no gradient.
    """

    fine_mask: Tensor
    scales: Scales
    num_fine: int | None = None
    fine_weight: Tensor | None = None

    @property
    def total_tokens(self) -> int | None:
        """Number of packed rows of the batch, prefix tokens included, if the host knows it, else None."""
        return None if self.num_fine is None else self.scales.total_tokens(len(self.fine_mask), self.num_fine)

    def num_patches(self) -> Tensor:
        """int64 [batch]: number of patch tokens of each image."""
        return self.scales.patches(self.fine_mask.flatten(1).sum(1))

    def fine_shares(self) -> Tensor:
        """fp32 [batch]: share of fine regions of each image."""
        return self.fine_mask.flatten(1).sum(1) / self.scales.num_regions

    def patches_per_image(self) -> Tensor:
        """fp32, 0-d: mean number of patch tokens per image of the batch."""
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
    """Makes a decision from the mask that a caller gives in place of a gate.

    Args:
        fine_mask: bool [batch, Hc, Wc], on the device of the images.
        images: [batch, ...].
        scales: the candidate tokens of an image.

    Returns:
        The decision, without a weight for the gate's gradient.

    Raises:
        TypeError, ValueError: `fine_mask` has the wrong type, dtype, shape or device.
    """
    check_regions("fine_mask", fine_mask, images, scales)
    if fine_mask.dtype != torch.bool:
        raise TypeError(f"fine_mask: expected dtype bool, got {fine_mask.dtype}")
    return Decision(fine_mask, scales)


def check_regions(name: str, values: Any, images: Tensor, scales: Scales) -> None:
    """Raises TypeError or ValueError unless `values` is a tensor [batch, Hc, Wc] on the device of the images."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(values).__name__}")
    expected = (images.shape[0], *scales.regions)
    if tuple(values.shape) != expected:
        raise ValueError(f"{name}: expected shape {[*expected]}, got {[*values.shape]}")
    if values.device != images.device:
        raise ValueError(f"{name}: expected device {images.device} (that of the images), got {values.device}")


def check_logits(name: str, logits: Any, images: Tensor, scales: Scales) -> None:
    """Raises TypeError or ValueError unless `logits` are the result of a gate for the images.

    NaN is allowed without a gradient: such regions rank last. It is refused where it would become a key weight, on the
    CPU, and on a GPU if MSVIT_CHECK=1.
    """
    check_regions(name, logits, images, scales)
    if not logits.is_floating_point():
        raise TypeError(f"{name}: expected floats, got {logits.dtype}")
    if _wants_gradient(logits) and consistency.are_readable(logits):
        _check_numbers(name, logits.detach(), images)


def _check_numbers(name: str, logits: Tensor, images: Tensor) -> None:
    """Raises ValueError if a logit is NaN; the message names the image."""
    broken = logits.isnan().flatten(1).any(1).tolist()
    if True not in broken:
        return
    index = broken.index(True)
    if not images[index].isfinite().all():
        raise ValueError(f"images: expected finite pixels, got NaN or infinity in image {index} of the batch")
    raise ValueError(f"{name}: expected numbers, got NaN for image {index} of the batch")


def take_decision(gate: nn.Module, policy: Policy, logits: Tensor, scales: Scales) -> Decision:
    """Turns the logits of a gate into a decision: noise in training, then the policy (eq. 1, 2).

    Args:
        gate: module that computed the logits. If it is a `Gate`, its `sample` adds the noise. The gradient is that of
            a sigmoid with the gate's `temperature`, or with 1 if it has none.
        policy: policy that chooses the fine regions from the logits.
        logits: floats [batch, Hc, Wc].
        scales: the candidate tokens of an image.

    Returns:
        The decision; it has a straight-through weight if the logits require a gradient.
    """
    wants_gradient = _wants_gradient(logits)
    if isinstance(gate, Gate):
        logits = gate.sample(logits)
    fine_mask, num_fine = policy(logits.detach(), scales.scale_factor)
    if not wants_gradient:
        return Decision(fine_mask, scales, num_fine)
    temperature: Any = getattr(gate, "temperature", 1.0)
    soft = torch.sigmoid(logits.to(softmax_dtype(logits)) / temperature)
    # The value is that of the mask, the gradient that of the soft gate.
    return Decision(fine_mask, scales, num_fine, fine_mask.to(soft.dtype) + (soft - soft.detach()))


def _wants_gradient(logits: Tensor) -> bool:
    return logits.requires_grad and torch.is_grad_enabled()
