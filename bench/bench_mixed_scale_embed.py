"""Times `mixed_scale_embed` against eager torch, forward and backward, for ViT-S at 224 pixels.

    python bench/bench_mixed_scale_embed.py

Random regions are fine, so that an image has half of its 196 fine tokens on average. All methods compute the same
packed rows from the same images:

    reference          the eager specification of this project
    torch conv         convolves all candidates of both scales, then selects the active rows
    torch gather       gathers the active patches, then multiplies once

The time includes the normalisation of uint8 images. The backward pass (weight, bias, table) is timed alone, on a
retained graph, and together with the forward pass: torch gather keeps all active patches in its graph, but this
operator cuts them from the images again. Operations: 6 patch_size^2 dim for each active patch token, in each direction.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.command_line import DTYPES
from bench.operators.cases import Case, CaseMaker, Setting, backends_to_time, check_baseline
from bench.operators.command import main
from bench.passes import backward_alone, forward_and_backward
from msvit_kernels import mixed_scale_embed, mixed_scale_layout, testing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH, SCALE, PREFIX = 16, 2, 1


class Inputs:
    """Images [batch, 3, side, side], a layout of them, the parameters, and the indices that the alternatives need."""

    def __init__(self, batch: int, side: int, dim: int, images: str, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = side // (PATCH * SCALE)
        regions, self.candidates = coarse**2, PREFIX + coarse**2 * (1 + SCALE**2)
        fine = torch.zeros(batch * regions, dtype=torch.bool)
        # Half of the fine tokens: Nc + 3 K = Nf / 2 per image.
        fine[torch.randperm(len(fine), generator=generator)[: len(fine) // 3]] = True
        mask = fine.view(batch, coarse, coarse).to(device)
        self.layout = mixed_scale_layout(mask, scale_factor=SCALE, num_prefix=PREFIX)
        pixels = torch.randint(0, 256, (batch, 3, side, side), generator=generator, dtype=torch.uint8).to(device)
        self.mean, self.std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (MEAN, STD))
        self.raw = images == "uint8"
        self.images = pixels if self.raw else ((pixels / 255 - self.mean) / self.std).to(dtype)
        shapes = [(dim, 3, PATCH, PATCH), (dim,), (self.candidates, dim)]
        leaves = [(torch.randn(shape, generator=generator) * 0.05).to(device, dtype) for shape in shapes]
        self.weight, self.bias, self.table = (leaf.requires_grad_() for leaf in leaves)
        self.dout = torch.randn(self.layout.total_tokens, dim, generator=generator).to(device, dtype)
        self._index(coarse)

    @property
    def leaves(self) -> list[Tensor]:
        return [self.weight, self.bias, self.table]

    @property
    def patches(self) -> int:
        """Active patch tokens of the batch."""
        return self.layout.total_tokens - PREFIX * self.layout.batch

    def ours(self, backend: str, dtype: torch.dtype | None = None) -> tuple[Tensor, list[Tensor]]:
        """Rows and leaves of a call, in `dtype` or in the dtype of the parameters."""
        leaves = self.leaves if dtype is None else [x.detach().to(dtype).requires_grad_() for x in self.leaves]
        images = self.images if dtype is None or self.raw else self.images.to(dtype)
        weight, bias, table = leaves
        mean, std = (MEAN, STD) if self.raw else (None, None)
        rows = mixed_scale_embed(
            images, self.layout, weight, bias, table, patch_size=PATCH, mean=mean, std=std, backend=backend
        )
        return rows, leaves

    def rows(self, backend: str) -> Tensor:
        """Packed rows [total_tokens, dim] of a backend."""
        return self.ours(backend)[0]

    def conv(self) -> Tensor:
        """The same rows, by convolution of every candidate."""
        images, batch = self._normalised(), self.layout.batch
        coarse = F.conv2d(F.avg_pool2d(images, SCALE), self.weight, self.bias, stride=PATCH).flatten(2)
        fine = F.conv2d(images, self.weight, self.bias, stride=PATCH).flatten(2)
        patches = torch.cat([coarse, fine], dim=2).mT + self.table[PREFIX:]
        prefix = self.table[:PREFIX].expand(batch, -1, -1)
        return torch.cat([prefix, patches], dim=1).flatten(0, 1).index_select(0, self.row)

    def gather(self) -> Tensor:
        """The same rows, by one product of the active patches."""
        images = self._normalised()
        coarse = _patches(F.avg_pool2d(images, SCALE))[self.coarse_index]
        rows = torch.cat([coarse, _patches(images)[self.fine_index]]).flatten(1)  # [active patches, 3 * p * p]
        added = self.table.index_select(0, self.patch_candidate) + self.bias
        projected = torch.addmm(added, rows, self.weight.flatten(1).t())
        return torch.cat([self.table[:PREFIX], projected]).index_select(0, self.source)

    def _normalised(self) -> Tensor:
        if not self.raw:
            return self.images
        return ((self.images / 255 - self.mean) / self.std).to(self.weight.dtype)

    def _index(self, coarse: int) -> None:
        image, token = self.layout.batch_index.long(), self.layout.token_index.long()
        self.row = image * self.candidates + token
        first_fine = PREFIX + coarse**2
        is_coarse, is_fine = (token >= PREFIX) & (token < first_fine), token >= first_fine
        cell = token[is_coarse] - PREFIX
        self.coarse_index = (image[is_coarse], cell // coarse, cell % coarse)
        cell, width = token[is_fine] - first_fine, coarse * SCALE
        self.fine_index = (image[is_fine], cell // width, cell % width)
        self.patch_candidate = torch.cat([token[is_coarse], token[is_fine]])
        # Index of each packed row in [prefix, coarse patches, fine patches].
        self.source = token.clone()
        self.source[is_coarse] = PREFIX + torch.arange(int(is_coarse.sum()), device=token.device)
        self.source[is_fine] = PREFIX + is_coarse.sum() + torch.arange(int(is_fine.sum()), device=token.device)


def _patches(images: Tensor) -> Tensor:
    """[batch, 3, H, W] -> view [batch, rows, columns, 3, p, p]."""
    return images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5)


def make_case(
    batch: int, side: int, dim: int, images: str, direction: str, dtype_name: str, device: torch.device
) -> Case:
    """All methods in one direction."""
    dtype = DTYPES[dtype_name]
    x = Inputs(batch, side, dim, images, dtype, device)
    backward = direction != "fwd"
    timed = {"fwd": _forward_alone, "bwd": backward_alone, "fwd+bwd": forward_and_backward}[direction]
    backends = backends_to_time("mixed_scale_embed", device, dtype, images_dtype=x.images.dtype)
    calls: dict[str, Callable[[], Tensor]] = {backend: partial(x.rows, backend) for backend in backends}
    calls |= {"torch conv": x.conv, "torch gather": x.gather}
    methods: dict[str, Callable[[], Any]] = {name: timed(call, x.leaves, x.dout) for name, call in calls.items()}

    def check() -> None:
        oracle = results(x, "reference", backward, torch.float64)
        eager = results(x, "reference", backward)
        for backend in (name for name in backends if name != "reference"):
            actual = results(x, backend, backward)
            names = ("dweight", "dbias", "dtable") if backward else ("out",)
            for name, mine, same_dtype, exact in zip(names, actual, eager, oracle, strict=True):
                testing.assert_accurate(f"{backend} {name}", mine, same_dtype, exact)
        rows = x.ours("reference", torch.float64)[0].detach()
        for name in ("torch conv", "torch gather"):
            check_baseline(name, calls[name](), rows)

    fields = {
        "shape": f"{batch} x {side} px, dim {dim}",
        "images": images,
        "tokens": x.patches,
        "direction": direction,
        "dtype": dtype_name,
    }
    passes = 2 if direction == "fwd+bwd" else 1
    return Case(fields, methods, check, flop=6.0 * PATCH**2 * dim * x.patches * passes)


def _forward_alone(call: Callable[[], Tensor], leaves: Sequence[Tensor], grad: Tensor) -> Callable[[], Tensor]:
    return call


def results(x: Inputs, backend: str, backward: bool, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The rows, or with `backward` the gradients of weight, bias and table, of a backend in a dtype."""
    out, leaves = x.ours(backend, dtype)
    return list(torch.autograd.grad(out, leaves, x.dout.to(out.dtype))) if backward else [out]


def cases(setting: Setting) -> list[CaseMaker]:
    """uint8 and float images in all directions and dtypes, of a batch and of one image."""
    shapes = [(16, 224, 384), (1, 224, 384)] if setting.device.type == "cpu" else [(256, 224, 384), (1, 224, 384)]
    if setting.quick:
        shapes = [(2, 64, 48)]
    return [
        partial(make_case, *shape, images, direction, dtype_name, setting.device)
        for dtype_name in setting.dtypes
        for shape in shapes
        for images in ("uint8", "float")
        for direction in ("fwd", "bwd", "fwd+bwd")
    ]


if __name__ == "__main__":
    main("mixed_scale_embed", cases, __doc__)
