"""timm optimizers and schedules: one pair for the backbone and one for the gate, which warms up for longer."""

from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from msvit.training.config import Config

# The schedule starts at this share of the learning rate; from 0, the first step would do nothing.
_WARMUP_START = 0.01


class Part:
    """An optimizer with its schedule, whose learning rate is a function of the number of steps.

    Args:
        groups: groups of parameters, each with "params", "lr" and "weight_decay".
        config: values of the run.
        warmup_epochs: number of warm-up epochs.
        steps_per_epoch: number of steps in an epoch.
        delay_epochs: number of epochs at the start with a learning rate of 0.

    Raises:
        ValueError: timm does not know the optimizer or the schedule.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        config: Config,
        warmup_epochs: float,
        steps_per_epoch: int,
        delay_epochs: float = 0.0,
    ) -> None:
        self.delay_steps = delay_epochs * steps_per_epoch
        self.base_rates = [group["lr"] for group in groups]
        try:
            self.optimizer = create_optimizer_v2(
                groups, opt=config.optimizer, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
            )
        except ValueError as error:
            raise ValueError(f"--optimizer {config.optimizer}: {error}") from error
        try:
            self.scheduler, _ = create_scheduler_v2(
                self.optimizer,
                config.schedule,
                num_epochs=config.epochs,
                warmup_epochs=warmup_epochs,  # type: ignore[arg-type] # steps allow fractions of an epoch
                decay_rate=config.decay_rate,
                min_lr=config.min_lr,
                warmup_lr=_WARMUP_START * config.lr,
                step_on_epochs=False,
                updates_per_epoch=steps_per_epoch,
            )
        except (ValueError, AssertionError) as error:
            raise ValueError(f"--schedule {config.schedule}: {error}") from error

    def set_step(self, step: int) -> None:
        """Sets the learning rates for step number `step`, counted from 0."""
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate
        if self.scheduler is not None:
            self.scheduler.step_update(step)
        if step < self.delay_steps:
            for group in self.optimizer.param_groups:
                group["lr"] = 0.0


def make_parts(model: Any, loss: nn.Module | None, config: Config, steps_per_epoch: int) -> list[Part]:
    """Makes the optimizers of a run.

    Args:
        model: model to train; parameters without `requires_grad` are left out.
        loss: loss of the gate, whose learned priors are trained with the gate, or None.
        config: values of the run.
        steps_per_epoch: number of steps in an epoch.

    Returns:
        One part for the backbone and one for the gate, without those that are not trained.

    Raises:
        ValueError: timm does not know the optimizer or the schedule, or nothing is trained.
    """
    skip = model.no_weight_decay()
    backbone: list[tuple[str, nn.Parameter]] = []
    gate: list[tuple[str, nn.Parameter]] = []
    gate_parameters = {*model.gate.parameters()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (gate if parameter in gate_parameters else backbone).append((name, parameter))
    parts = []
    if backbone:
        parts.append(Part(_groups(backbone, skip, config, 1.0), config, config.warmup_epochs, steps_per_epoch))
    gate_groups = _groups(gate, skip, config, config.gate_lr_scale)
    if loss is not None and (priors := list(loss.parameters())):
        gate_groups.append({"params": priors, "lr": config.lr * config.prior_lr_scale, "weight_decay": 0.0})
    if gate:
        delay = config.gate_delay_epochs
        parts.append(Part(gate_groups, config, config.gate_warmup_epochs, steps_per_epoch, delay))
    if not parts:
        raise ValueError(f"--freeze {config.freeze}: nothing is left to train")
    return parts


def _groups(
    named: Iterable[tuple[str, nn.Parameter]], skip: set[str], config: Config, scale: float
) -> list[dict[str, Any]]:
    """Parameter groups with and without weight decay."""
    groups: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for name, parameter in named:
        groups[parameter.ndim > 1 and name not in skip].append(parameter)
    return [
        {"params": tensors, "lr": config.lr * scale, "weight_decay": config.weight_decay if decays else 0.0}
        for decays, tensors in groups.items()
        if tensors
    ]
