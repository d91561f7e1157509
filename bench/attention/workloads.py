"""Sequences on which attention is measured, the minimum work for them, and their tensors.

The width of the embedding is 384, as in ViT-S, for every head_dim. Minimum bytes: every input is read once and every
output is written once. Operations, by the usual count: 4 n^2 heads head_dim forward, 2.5 times that backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msvit_kernels import testing

WIDTH = 384
HEADLINE = "256 x 64..196"


@dataclass(frozen=True)
class Workload:
    """Packed sequences.

    Attributes:
        name: number of sequences and their lengths, such as "256 x 64..196".
        lengths: tokens of each sequence.
        head_dim: elements of a head.
        width: elements of all heads together.
    """

    name: str
    lengths: tuple[int, ...]
    head_dim: int = 64
    width: int = WIDTH

    @property
    def num_heads(self) -> int:
        return self.width // self.head_dim

    @property
    def total(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def label(self) -> str:
        return f"{self.name}, head_dim {self.head_dim}"

    def flop(self, backward: bool) -> float:
        """Operations of the two matrix products (five in the backward pass) over true lengths, without padding."""
        return 4.0 * sum(n * n for n in self.lengths) * self.num_heads * self.head_dim * (2.5 if backward else 1)

    def bytes(self, backward: bool, element_size: int, weighted: bool = False) -> float:
        """Minimum bytes to move: q, k, v, out, lse; backward also dout, dq, dk, dv; key weights and their gradient.

        Args:
            backward: whether to count the backward pass instead of the forward pass.
            element_size: bytes of an element of q.
            weighted: whether keys have weights.
        """
        tensors = self.total * self.num_heads * self.head_dim * element_size * (8 if backward else 4)
        lse = self.total * self.num_heads * 4
        weights = self.total * 4 * (1 + backward) if weighted else 0
        return float(tensors + lse + weights)


def uniform(count: int, shortest: int, longest: int, seed: int = 0) -> tuple[int, ...]:
    """Random lengths in shortest..longest; with two or more sequences, both bounds occur."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    if count > 1:
        lengths[0], lengths[-1] = shortest, longest
    return tuple(lengths)


def gpu_workloads() -> list[Workload]:
    """Workloads in the order of their importance: if time runs out, the last ones are left out."""
    lengths = {
        HEADLINE: uniform(256, 64, 196),
        "57 x 576": (576,) * 57,
        "32 x 1024": (1024,) * 32,
        "256 x 196": (196,) * 256,
        "512 x 49": (49,) * 512,
        "64 x 144..576": uniform(64, 144, 576),
        "1 x 2048 and 255 x 64..196": (2048, *uniform(255, 64, 196)),
        "8 x 64..196": uniform(8, 64, 196),
        "1 x 196": (196,),
    }
    return [Workload(name, each, head_dim) for head_dim in (64, 32, 128) for name, each in lengths.items()]


def cpu_workloads() -> list[Workload]:
    """Small workloads, to test the GPU paths without a GPU."""
    return [Workload("4 x 16..64", uniform(4, 16, 64), 32, 64), Workload("3 x 20", (20,) * 3, 16, 64)]


def rotations(bytes_of_one: float, cache_bytes: float, most: int = 128) -> int:
    """Sets of buffers, at most `most`, so that three times the cache size passes between two uses of a set."""
    return max(2, min(most, -(-int(3 * cache_bytes) // max(1, int(bytes_of_one)))))


class Buffers:
    """Tensors of one workload: q, k, v are views of a packed projection, as a transformer block makes them.

    Args:
        workload: lengths and head_dim.
        dtype: dtype of q, k, v and dout; the key weight is fp32.
        device: device of all tensors.
        seed: seed of the values, different for every set of buffers.

    Attributes:
        qkv: [total, 3, heads, head_dim], of which q, k, v [total, heads, head_dim] are leaves.
        dout: [total, heads, head_dim], upstream gradient.
        weight: fp32 [total], key weights in [0, 1).
        offsets: int32 [batch + 1], `cu_seqlens`.
        present: bool [batch, longest], True for a token, False for padding.
    """

    def __init__(self, workload: Workload, dtype: torch.dtype, device: torch.device, seed: int = 0) -> None:
        self.workload, self.dtype, self.device = workload, dtype, device
        generator = torch.Generator(device).manual_seed(seed)
        shape = (workload.total, workload.num_heads, workload.head_dim)
        self.qkv = torch.randn(shape[0], 3, *shape[1:], generator=generator, device=device).to(dtype)
        self.q, self.k, self.v = (x.detach().requires_grad_() for x in self.qkv.unbind(1))
        self.dout = torch.randn(shape, generator=generator, device=device).to(dtype)
        self.weight = torch.rand(workload.total, generator=generator, device=device).requires_grad_()
        self.offsets = testing.offsets(workload.lengths, device)
        self.present = torch.arange(workload.longest, device=device) < self.offsets.diff()[:, None]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.q, self.k, self.v]

    @property
    def document(self) -> Tensor:
        """int32 [total]: the sequence of each token."""
        lengths = self.offsets.diff()
        return torch.arange(len(lengths), device=self.device, dtype=torch.int32).repeat_interleave(lengths)

    def pad(self, x: Tensor) -> Tensor:
        """[total, ...] -> [batch, longest, ...], zeros behind each sequence."""
        padded = x.new_zeros(*self.present.shape, *x.shape[1:])
        padded[self.present] = x.detach()
        return padded

    def padded_leaves(self) -> list[Tensor]:
        """q, k, v [batch, heads, longest, head_dim]: views of one padded projection."""
        return [x.transpose(1, 2).detach().requires_grad_() for x in self.pad(self.qkv).unbind(2)]

    def unpad(self, x: Tensor) -> Tensor:
        """[batch, heads, longest, head_dim] -> [total, heads, head_dim]."""
        return x.transpose(1, 2)[self.present]


def rows_of_full_sequences(lengths: Sequence[int]) -> Tensor:
    """int64: packed rows of the longest sequences, which have no padding."""
    start, rows = 0, []
    for length in lengths:
        if length == max(lengths):
            rows += list(range(start, start + length))
        start += length
    return torch.tensor(rows)
