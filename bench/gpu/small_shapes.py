"""Runs every operator of every backend once, forward and backward, on small shapes: what compute-sanitizer looks at.

    compute-sanitizer --tool memcheck python bench/gpu/small_shapes.py --device cuda

Results are held against the reference on the CPU, which launches nothing. Inputs are made on the CPU too.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import common
import torch
from torch import Tensor

from msvit_kernels import mixed_scale_embed, mixed_scale_layout, testing, unpack_to_grid, varlen_attention

# Partial tiles, tiles of one row, an empty sequence, and one that is too long for the keys to stay on the chip.
LENGTHS = {32: (0, 1, 17, 49), 64: (49, 0, 130, 196, 1), 128: (70, 520)}
PATCH, SCALE, PREFIX, DIM = 8, 2, 1, 32
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def attention(backend: str, head_dim: int, dtype: torch.dtype, device: torch.device) -> int:
    """One backend on one head_dim with key weights; how many results were compared."""
    lengths = LENGTHS[head_dim]
    q, k, v = testing.qkv_views(sum(lengths), 2, head_dim, dtype)
    weight = testing.key_weights("fractional", sum(lengths))
    dout = torch.randn(sum(lengths), 2, head_dim).to(dtype)
    offsets = testing.offsets(lengths)

    def results(backend: str, dtype: torch.dtype, place: torch.device) -> list[Tensor]:
        leaves = [x.to(place, dtype).requires_grad_() for x in (q, k, v)]
        key_weight = weight.to(place, torch.promote_types(dtype, torch.float32)).requires_grad_()
        out = varlen_attention(*leaves, offsets.to(place), max(lengths), key_weight=key_weight, backend=backend)
        return [out, *torch.autograd.grad(out, [*leaves, key_weight], dout.to(place, dtype))]

    return _compare(results, backend, dtype, device, ("out", "dq", "dk", "dv", "dweight"))


def tokens(backend: str, dtype: torch.dtype, device: torch.device) -> int:
    """Layout, embedding and grid; how many results were compared."""
    mask = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]], dtype=torch.bool)
    images = torch.randint(0, 256, (3, 3, 2 * PATCH * SCALE, 2 * PATCH * SCALE), dtype=torch.uint8)
    shapes = [(DIM, 3, PATCH, PATCH), (DIM,), (PREFIX + 4 * (1 + SCALE**2), DIM)]
    weights = [torch.randn(shape) * 0.1 for shape in shapes]

    def results(backend: str, dtype: torch.dtype, place: torch.device) -> list[Tensor]:
        # A backend need not have every operator.
        layout_backend, grid_backend = (
            backend if backend in testing.backends_for(operator, place.type, kind) else None
            for operator, kind in (("mixed_scale_layout", torch.bool), ("unpack_to_grid", dtype))
        )
        layout = mixed_scale_layout(mask.to(place), scale_factor=SCALE, num_prefix=PREFIX, backend=layout_backend)
        leaves = [x.to(place, dtype).requires_grad_() for x in weights]
        rows = mixed_scale_embed(
            images.to(place), layout, *leaves, patch_size=PATCH, mean=MEAN, std=STD, backend=backend
        )
        grid = unpack_to_grid(rows, layout, backend=grid_backend)
        return [rows, grid, *torch.autograd.grad(grid.square().sum() / 100, leaves)]

    return _compare(results, backend, dtype, device, ("rows", "grid", "dweight", "dbias", "dtable"))


def _compare(
    results: Callable[[str, torch.dtype, torch.device], list[Tensor]],
    backend: str,
    dtype: torch.dtype,
    device: torch.device,
    names: Sequence[str],
) -> int:
    cpu = torch.device("cpu")
    oracle, eager = results("reference", torch.float64, cpu), results("reference", dtype, cpu)
    actual = [x.detach().cpu() for x in results(backend, dtype, device)]
    for name, *values in zip(names, actual, eager, oracle, strict=True):
        testing.assert_accurate(f"{backend} {name}", *values, summand=float(values[-1].detach().abs().max()))
    return len(names)


def main(argv: list[str] | None = None) -> int:
    """Number of failures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", help="cpu or cuda; found by itself where not given")
    parser.add_argument("--backend", help="one of the table; all that run here where not given")
    arguments = parser.parse_args(argv)
    device = common.find_device(arguments.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    failures = 0
    jobs = [(attention, "varlen_attention", {"head_dim": head_dim}) for head_dim in LENGTHS]
    jobs += [(tokens, "mixed_scale_embed", {"images_dtype": torch.uint8})]
    for function, operator, details in jobs:
        for backend in testing.backends_for(operator, device.type, dtype, **details):
            if backend == "reference" or arguments.backend not in (None, backend):
                continue
            label = f"{operator} {backend} {details}"
            try:
                compared = function(backend, *(details[k] for k in details if k == "head_dim"), dtype, device)
                print(f"ok {label}: {compared} results", flush=True)
            except (AssertionError, NotImplementedError) as error:
                failures += 1
                print(f"FAILED {label}: {error}", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
