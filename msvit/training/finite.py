"""The checks that losses, gradients and weights of a run are finite, and errors that name the cause if one is not."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from msvit.training.batches import Batch
from msvit.training.checkpoints import newest_text


class FiniteChecks:
    """The checks of a run; each raises FloatingPointError.

    Args:
        folder: folder of the run, whose newest checkpoint errors name.
        objective: model and losses.
        steps_per_epoch: number of steps in an epoch.
    """

    def __init__(self, folder: Path, objective: nn.Module, steps_per_epoch: int) -> None:
        self.folder, self.objective, self.steps_per_epoch = folder, objective, steps_per_epoch

    def losses(self, values: Mapping[str, float], step: int, batch: Batch) -> None:
        """Checks the losses of a batch, by name."""
        if not all(map(math.isfinite, values.values())):
            terms = ", ".join(f"{name} {value}" for name, value in values.items())
            raise self.error("loss", terms, step, batch)

    def gradient(self, norm: float, step: int, batch: Batch) -> None:
        """Checks the norm of the gradient; `batch` is the last part of the step's images."""
        if not math.isfinite(norm):
            raise self.error("gradient", f"its norm is {norm}", step, batch)

    def weights(self, step: int) -> None:
        """Checks the weights before a checkpoint is written, from which no run could continue."""
        if weights := broken_weights(self.objective):
            raise FloatingPointError(f"weights are not finite after step {step}: {weights}; {self._advice(step)}")

    def test_loss(self, loss: float, step: int) -> None:
        """Checks the loss on the test images."""
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss on the test images is not finite after step {step} (epoch {step // self.steps_per_epoch}): "
                f"{loss}; {self._advice(step)}"
            )

    def error(self, quantity: str, terms: str, step: int, batch: Batch) -> FloatingPointError:
        """Makes the error that a quantity of a step is not finite, with the pixels or weights that are not."""
        epoch, number = divmod(step, self.steps_per_epoch)
        images = "" if batch.indices is None else f", images {batch.indices[:8]}... of the training set"
        pixels, weights = broken_pixels(batch), broken_weights(self.objective)
        causes = (("pixels", pixels), ("weights", weights))
        known = "".join(f"; {what} are not finite: {which}" for what, which in causes if which)
        return FloatingPointError(
            f"the {quantity} is not finite at step {step} (batch {number} of epoch {epoch + 1}{images}): "
            f"{terms}{known}; {self._advice(step, pixels is None)}"
        )

    def _advice(self, step: int, diverged: bool = True) -> str:
        newest = newest_text(self.folder, before=step)
        help_ = "; a new run with a lower --lr or with --clip-grad 1 may help, while --resume would end here again"
        return newest + help_ * diverged


def broken_pixels(batch: Batch) -> str | None:
    """Names the images of a batch with pixels that are not finite; None if there are none, as in uint8 images."""
    finite = batch.images.flatten(1).isfinite().all(1)
    if finite.all():
        return None
    found = (~finite).nonzero().flatten().tolist()
    if batch.indices is None:
        return f"images {found[:8]} of the batch"
    return f"images {[batch.indices[i] for i in found][:8]} of the training set"


def broken_weights(objective: nn.Module) -> str | None:
    """Names the parameters that are not finite; None if there are none."""
    parameters = dict(objective.named_parameters())
    # One transfer from the device for all parameters.
    finite = torch.stack([parameter.detach().isfinite().all() for parameter in parameters.values()]).tolist()
    names = [name.removeprefix("model.") for name, good in zip(parameters, finite, strict=True) if not good]
    if not names:
        return None
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


@torch.no_grad()
def is_gate_broken(gate: nn.Module, batch: Batch, device: torch.device) -> bool:
    """Whether the gate gives NaN or infinity for an image of a batch."""
    logits: Tensor = gate(batch.images.to(device))
    return not logits.isfinite().all()
