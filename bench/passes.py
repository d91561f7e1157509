"""Backward passes to be timed: alone on a retained graph, or together with the forward pass."""

from collections.abc import Callable, Sequence

import torch
import torch._functorch.config
from torch import Tensor

# A kept graph is used again and again, which compiled backward passes refuse by default.
torch._functorch.config.donated_buffer = False


def backward_alone(
    call: Callable[[], Tensor], leaves: Sequence[Tensor], grad: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """The backward pass of `call` alone; the first use builds its graph, which is retained."""
    kept: list[Tensor] = []

    def backward() -> tuple[Tensor, ...]:
        if not kept:
            with torch.enable_grad():
                kept.append(call())
        return torch.autograd.grad(kept[0], leaves, grad, retain_graph=True)

    return backward


def forward_and_backward(
    call: Callable[[], Tensor], leaves: Sequence[Tensor], grad: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward pass, as in training."""

    def both() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return torch.autograd.grad(call(), leaves, grad)

    return both
