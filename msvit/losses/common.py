"""Parts that the gate losses share: checks, precision, the global batch, and the distance to a distribution."""

import math
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def check_share(name: str, value: float) -> float:
    """Returns a value inside (0, 1); raises TypeError or ValueError for others."""
    return _check(name, value, 0 < _number(name, value) < 1, "a number inside (0, 1)")


def check_positive(name: str, value: float) -> float:
    """Returns a positive finite value; raises TypeError or ValueError for others."""
    return _check(name, value, 0 < _number(name, value) < math.inf, "a positive number")


def check_clip(value: float | None) -> float | None:
    """Returns None or a value inside (0, 0.5); raises TypeError or ValueError for others."""
    if value is None:
        return None
    return _check("clip", value, 0 < _number("clip", value) < 0.5, "None or a number inside (0, 0.5)")


def check_logits(logits: Tensor, positions: int | None = None) -> None:
    """Raises TypeError or ValueError unless logits are floats of shape [batch, positions]."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits: expected a tensor, got {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"logits: expected floats, got {logits.dtype}")
    if logits.ndim != 2 or logits.shape[1] < 1 or positions not in (None, logits.shape[1]):
        wanted = "positions" if positions is None else positions
        raise ValueError(f"logits: expected shape [batch, {wanted}], got {[*logits.shape]}")


def global_batch(logits: Tensor) -> Tensor:
    """Gathers the logits of all processes.

    Args:
        logits: floats [batch, positions] of this process; the batch size may differ between processes.

    Returns:
        fp32 [global batch, positions], fp64 for fp64 logits, in the order of the ranks and with a gradient.

    Raises:
        ValueError: no process has an image.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        logits = cast(Tensor, _Gather.apply(logits))
    if not len(logits):
        raise ValueError(f"logits: expected at least one image, got shape {[*logits.shape]}")
    return logits


def squared_distance(cdf_of_sorted: Tensor) -> Tensor:
    """Computes the Cramér-von Mises distance between the samples of each row and a distribution.

        1/n sum_i (F(x_(i)) - i / (n + 1))^2

    It is 1 / (6 (n + 1)) on average if the samples are drawn from that distribution.

    Args:
        cdf_of_sorted: floats [rows, n], F at the sorted samples of each row.

    Returns:
        Distances [rows], in the dtype of the input.
    """
    n = cdf_of_sorted.shape[1]
    empirical = torch.arange(1, n + 1, dtype=cdf_of_sorted.dtype, device=cdf_of_sorted.device) / (n + 1)
    return (cdf_of_sorted - empirical).square().mean(1)


def relaxed_bernoulli_cdf(logits: Tensor, mean_logit: Tensor, temperature: float, clip: float | None) -> Tensor:
    """Computes the distribution function of a relaxed Bernoulli variable m = sigmoid(z), at its logits z.

        F(z) = sigmoid(tau z - logit(mu)),   P(m > 0.5) = 1 - F(0) = mu

    Args:
        logits: z, floats of any shape.
        mean_logit: logit(mu), floats that broadcast to z.
        temperature: tau.
        clip: eps, which clips m to [eps, 1 - eps] and so removes the gradient outside; None for no clipping.

    Returns:
        F(z), in the shape of z.
    """
    if clip is not None:
        most = math.log1p(-clip) - math.log(clip)
        logits = logits.clamp(-most, most)
    return torch.sigmoid(temperature * logits - mean_logit)


class _Gather(torch.autograd.Function):
    """Rows of all processes in the order of their ranks; the gradient of a row is summed over the processes.

    Every process computes the same loss of the global batch. The summed gradient is then world_size times that of one
    process alone, and the averaging of DistributedDataParallel divides by world_size.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        counts = _row_counts(rows)
        ctx.counts = counts
        # Batches may differ in size, so all are padded to the largest.
        padded = rows.new_zeros(max(counts), rows.shape[1])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad.split(ctx.counts)[dist.get_rank()]


def _row_counts(rows: Tensor) -> list[int]:
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    return [int(n) for n in torch.cat(counts).tolist()]


def _number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    return float(value)


def _check(name: str, value: float, holds: bool, expected: str) -> float:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {value}")
    return float(value)
