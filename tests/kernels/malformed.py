"""Random faults for calls of the operators: a valid value comes in, a value that does not fit comes out."""

import random
from typing import Any

import torch
from torch import Tensor

INTS = (0, 1, 3, -1, -5, 7, 100, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63, 2.0, True, None, "2", torch.tensor(2))
NUMBERS = (float("nan"), float("inf"), 1e39, 0.0, -1.0, None, "1", 2**1100)


def faulty(value: Any) -> Any:
    """A random value in place of `value`, of the same kind or not; it may equal it by chance."""
    if isinstance(value, Tensor):
        return random.choice([_other_shape, _other_tensor, _other_contents, _other_contents])(value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice([*INTS, value - 1, value + 1])
    if isinstance(value, float):
        return random.choice(NUMBERS)
    if isinstance(value, tuple | list):
        changed = [faulty(item) if random.random() < 0.5 else item for item in value]
        return random.choice([changed, [*value, *value], value[:1], None, 3, value[0]])
    return random.choice([3, b"cpu", "gpu", "cpu "])


def _other_shape(x: Tensor) -> Tensor:
    padded = torch.cat([x, x[:1], x[:1]]) if x.ndim else x
    shapes = [x[:0], x[:-1], x[1:], padded, x[None], x.flatten(), x.mT if x.ndim > 1 else x[:, None], x.new_empty(0)]
    return random.choice([*shapes, x.reshape(-1)[:1].reshape(()) if x.numel() else x[None]])


def _other_tensor(x: Tensor) -> Any:
    """Another dtype, device, layout or stride, or no tensor at all."""
    dtype = random.choice([torch.int64, torch.int16, torch.float32, torch.float64, torch.bfloat16, torch.bool])
    every_second = x.repeat_interleave(2, -1)[..., ::2] if x.ndim else x
    first = x[:1].expand(x.shape) if x.ndim and x.shape[0] else x
    others = [x.to(dtype), x.to(dtype), x.to("meta"), every_second, first, x.to_sparse(), x.tolist(), None]
    return random.choice(others)


def _other_contents(x: Tensor) -> Tensor:
    if x.numel() == 0:
        return x.new_empty(3)
    if x.dtype == torch.bool:
        return random.choice([~x, x.flip(-1), x ^ (torch.rand(x.shape) < 0.2)])
    if x.is_floating_point() or x.dtype == torch.uint8:
        return x.flip(0)
    x, place = x.clone(), random.randrange(x.numel())
    flat = x.flatten()
    wrong = random.choice([-1, 0, 1, 2, 7, 60, 2**31 - 1, -(2**31), int(flat[place]) + 1, int(flat[place]) - 1])
    flat[place] = wrong
    return random.choice([flat.view_as(x), torch.full_like(x, wrong), x.flip(0), x.roll(1), x + 1])
