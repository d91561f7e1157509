"""Finds the pixels and weights that made a loss NaN or infinite."""

import torch
from torch import Tensor, nn

from msvit.training.batches import Batch


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
