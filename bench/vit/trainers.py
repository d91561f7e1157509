"""Training steps of the plain ViT and of the mixed-scale model in every token mode."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

import msvit
import msvit.losses
from bench.failures import RefusalError
from bench.vit.zoo import MODES
from msvit.policies import Selection, Threshold
from msvit_kernels import testing

METHODS = ("plain", *MODES)
NUM_CLASSES = 1000


class RecordingPolicy:
    """A policy that stores its last mask, so that tokens are counted without waiting in the step."""

    def __init__(self) -> None:
        self.policy = Threshold(0.5)
        self.fine_mask: Tensor | None = None

    def __call__(self, logits: Tensor, scale_factor: int) -> Selection:
        selection = self.policy(logits, scale_factor)
        self.fine_mask = selection.fine_mask
        return selection

    def check(self, num_regions: int, scale_factor: int) -> None:
        self.policy.check(num_regions, scale_factor)


@dataclass
class Trainer:
    """A model and everything else that a training step needs.

    Attributes:
        name: "plain" or a token mode.
        model: the model, whose gate is `model.gate` unless it is plain.
        optimizer: optimizer of the model and the gate loss.
        images: float [batch, 3, height, width] of every step.
        labels: int64 [batch] of every step.
        gate_loss: loss on the gate's logits [batch, regions]; None for the plain model.
    """

    name: str
    model: Any
    optimizer: torch.optim.Optimizer
    images: Tensor
    labels: Tensor
    gate_loss: Callable[[Tensor], Tensor] | None

    def losses(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """The cross-entropy, then the loss on the gate if there is one."""
        with torch.autocast("cuda", torch.bfloat16) if images.device.type == "cuda" else nullcontext():
            if self.gate_loss is None:
                return [F.cross_entropy(self.model(images), labels)]
            gate_logits = self.model.gate(images)
            logits = self.model(images, gate_logits=gate_logits)
            return [F.cross_entropy(logits, labels), self.gate_loss(gate_logits.flatten(1))]

    def step(self) -> Tensor:
        """Runs one training step and returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.stack(self.losses(self.images, self.labels)).sum()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def task_reaches_gate(self) -> bool:
        """Whether the cross-entropy of two images gives a gradient to the gate."""
        self.optimizer.zero_grad(set_to_none=True)
        self.losses(self.images[:2], self.labels[:2])[0].backward()
        gradient = self.model.gate.fc4.weight.grad
        return gradient is not None and float(gradient.abs().sum()) > 0

    def tokens(self) -> float:
        """Patch tokens per image of the last step."""
        if self.gate_loss is None:
            return float(self.model.patch_embed.num_patches)
        fine = self.model.policy.fine_mask.float().mean().item()
        return self.model.scales.mean_patches(fine)


def make_trainers(model_name: str, batch: int, target: float, optimizer: str, device: torch.device) -> list[Trainer]:
    """One trainer for each method, all with the same weights."""
    torch.manual_seed(0)
    mixed = msvit.create_model(model_name, num_classes=NUM_CLASSES)
    gate: Any = mixed.gate
    with torch.no_grad():  # noise makes P(fine) the sigmoid of the bias
        gate.fc4.weight.mul_(0.01)
        gate.fc4.bias.fill_(math.log(target) - math.log1p(-target))
    images = torch.randn(batch, 3, *mixed.image_size).to(device)
    labels = torch.randint(NUM_CLASSES, (batch,)).to(device)
    trainers = []
    for name in METHODS:
        model = _plain(mixed) if name == "plain" else msvit.create_model(model_name, num_classes=NUM_CLASSES)
        model.load_state_dict(mixed.state_dict(), strict=name != "plain")
        gate_loss = None
        if name != "plain":
            model.token_mode, model.policy = name, RecordingPolicy()
            gate_loss = msvit.losses.GeneralizedBatchShapingLoss(target, mixed.coarse_grid_size).to(device)
        model.to(device).train()
        weights = [*model.parameters(), *(gate_loss.parameters() if gate_loss else [])]
        # The rate is so small that the share of fine regions does not change.
        if optimizer == "sgd":
            chosen: torch.optim.Optimizer = torch.optim.SGD(weights, lr=1e-6, momentum=0.9)
        else:
            chosen = torch.optim.AdamW(weights, lr=1e-8)
        trainers.append(Trainer(name, model, chosen, images, labels, gate_loss))
    return trainers


def _plain(mixed: msvit.MixedScaleVisionTransformer) -> VisionTransformer:
    return VisionTransformer(
        img_size=mixed.image_size,
        patch_size=mixed.patch_size,
        embed_dim=mixed.embed_dim,
        depth=len(mixed.blocks),
        num_heads=mixed.num_heads,
        num_classes=NUM_CLASSES,
    )


def check(trainers: list[Trainer]) -> None:
    """Compares the token modes and makes the optimizers' state.

    Raises:
        RefusalError: the modes disagree on the logits of one mask, or the task does not train the gate.
    """
    models = {trainer.name: trainer.model for trainer in trainers if trainer.name in MODES}
    images = trainers[0].images[:2]
    height, width = models["masked"].coarse_grid_size
    mask = (torch.arange(len(images) * height * width, device=images.device) % 3 == 0).view(-1, height, width)
    with torch.no_grad():
        logits = {name: model.eval()(images, fine_mask=mask) for name, model in models.items()}
        masked = models["masked"].double()
        oracle = masked(images.double(), fine_mask=mask)
        masked.float()
    for name in ("trimmed", "packed"):
        try:
            testing.assert_accurate(f"{name} logits", logits[name], logits["masked"], oracle)
        except AssertionError as error:
            raise RefusalError(f"{name} differs from masked, so it is not timed: {error}") from error
    for trainer in trainers:
        trainer.model.train()
        if trainer.name in MODES and not trainer.task_reaches_gate():
            raise RefusalError(f"{trainer.name}: the gate gets no gradient of the task, so it is not timed")
        trainer.step()  # the first one makes the optimizer's state, which is not part of the peak memory
