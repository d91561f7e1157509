"""The training objective (eq. 6): task loss plus lambda times gate loss."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msvit.losses import BatchShapingLoss, GeneralizedBatchShapingLoss, L0Loss
from msvit.training.config import Config
from msvit.training.tasks import task_of


class Losses(NamedTuple):
    """Losses of a batch, each 0-d.

    Attributes:
        total: task loss plus lambda times gate loss.
        task: loss of the task, the cross-entropy.
        gate: gate loss, without lambda.
        tokens_per_image: mean number of active patch tokens.
    """

    total: Tensor
    task: Tensor
    gate: Tensor
    tokens_per_image: Tensor


class Objective(nn.Module):
    """Model and losses in one module, so that a wrapper for distributed training averages all of their gradients."""

    def __init__(self, model: Any, gate_loss: nn.Module | None, config: Config) -> None:
        super().__init__()
        self.task = task_of(config)
        self.model = model
        self.gate_loss = gate_loss
        self.gate_weight = config.gate_weight
        # The trainer divides the loss of each accumulated part by their number.
        bound = (config.clip_gate_grad or 0.0) / config.accumulate
        self.clip_gate_grad = 0.0 if model.token_mode == "packed" else bound

    def forward(self, images: Tensor, labels: Tensor) -> Losses:
        """Computes the losses for images, uint8 [batch, 3, H, W], with the labels of `Batch`."""
        backbone = self.task.backbone(self.model)
        # In bf16 many logits would be equal, and the gate loss depends on their order.
        with torch.autocast(images.device.type, enabled=False):
            gate_logits = backbone.gate(images)
        decision = backbone.decide(images, gate_logits=self._limited(gate_logits))
        task = self.task.loss(self.model, images, labels, decision)
        gate = task.new_zeros(()) if self.gate_loss is None else self.gate_loss(gate_logits.flatten(1))
        return Losses(task + self.gate_weight * gate, task, gate, decision.patches_per_image())

    def _limited(self, gate_logits: Tensor) -> Tensor:
        """The same logits with a bounded gradient: that of an inactive token grows like exp(score - lse)."""
        if not self.clip_gate_grad or not gate_logits.requires_grad:
            return gate_logits
        most = self.clip_gate_grad / len(gate_logits)  # the loss is a mean over images
        limited = gate_logits.view_as(gate_logits)
        limited.register_hook(lambda grad: grad.nan_to_num(0.0, most, -most).clamp(-most, most))
        return limited


def make_gate_loss(config: Config, grid_size: tuple[int, int]) -> nn.Module | None:
    """Makes the loss of the gate.

    Args:
        config: values of the run.
        grid_size: (Hc, Wc), regions of an image.

    Returns:
        A module that maps gate logits, [batch, Hc * Wc], to a loss, 0-d; None if no gate is trained or
        `config.loss` is "none".
    """
    if not config.trains_gate or config.loss == "none":
        return None
    if config.loss == "l0":
        return L0Loss(config.gate_target)
    if config.loss == "gbas":
        return GeneralizedBatchShapingLoss(
            config.gate_target,
            grid_size,
            config.prior_temperature,
            config.hyperprior_std,
            config.center_init,
            config.prior_clip,
        )
    flatten = config.loss == "bas-flat"
    return BatchShapingLoss(config.gate_target, config.prior_temperature, flatten, config.prior_clip)
