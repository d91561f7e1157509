"""Jobs of small_shapes.py: operators of every backend, forward and backward, on shapes that select certain kernels."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from bench.command_line import short_name
from msvit_kernels import mixed_scale_embed, mixed_scale_layout, testing, unpack_to_grid, varlen_attention

# Partial tiles, tiles of one row, an empty sequence; "long" has keys beyond shared memory, and two backward passes.
LENGTHS = {"32": (0, 1, 17, 49), "64": (49, 0, 130, 196, 1), "128": (70, 520), "long": (600, 3, 130)}
HEAD_DIMS = {"32": 32, "64": 64, "128": 128, "long": 64}
PATCH, SCALE, PREFIX, DIM = 8, 2, 1, 32
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
ONE_PASS, TWO_PASS = "varlen_attention_bwd_one_pass.cu one_pass_kernel", "varlen_attention_bwd_two_pass.cu "
CUDA_GRADIENTS = {"32": [ONE_PASS] * 3, "64": [ONE_PASS] * 3}  # else in two passes
TRITON_ATTENTION = ("_fwd_kernel", "_bwd_dq_kernel", "_bwd_dkv_kernel")
Results = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class Job:
    """One operator of one backend on a few shapes.

    Attributes:
        name: name on the command line.
        backend: backend to run.
        operator: operator in the table of backends; if the backend refuses it, the job is skipped.
        results: (backend, dtype, device) -> names and tensors, one by one, so that the results before a failing
            kernel are kept.
        kernels: name of the kernel that computes each result, for messages and for UNVERIFIED.md.
        details: arguments of the operator's `unsupported_reason`.
    """

    name: str
    backend: str
    operator: str
    results: Callable[[str, torch.dtype, torch.device], Results]
    kernels: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, object] = field(default_factory=dict)


def attention(name: str, backend: str, dtype: torch.dtype, place: torch.device) -> Results:
    """Forward pass with key weights and lse, and backward pass from both outputs."""
    lengths, head_dim = LENGTHS[name], HEAD_DIMS[name]
    torch.manual_seed(0)
    qkv = testing.qkv_views(sum(lengths), 2, head_dim, torch.bfloat16)
    weight = testing.key_weights("fractional", sum(lengths))
    assert weight is not None
    dout = torch.randn(sum(lengths), 2, head_dim).to(torch.bfloat16)
    dlse = torch.randn(2, sum(lengths))
    q, k, v = (x.to(place, dtype).requires_grad_() for x in qkv)
    statistics = torch.promote_types(dtype, torch.float32)
    weight = weight.to(place, statistics).requires_grad_()
    offsets = testing.offsets(lengths).to(place)
    out, lse = varlen_attention(q, k, v, offsets, max(lengths), key_weight=weight, return_lse=True, backend=backend)
    yield "out", out
    yield "lse", lse
    upstream = dout.to(place, dtype), dlse.to(place, statistics).masked_fill(lse == -torch.inf, 0)
    gradients = torch.autograd.grad((out, lse), (q, k, v, weight), upstream)
    yield from zip(("dq", "dk", "dv", "dweight"), gradients, strict=True)


def small_mask() -> Tensor:
    """bool [3, 2, 2]: an image with both scales, an all-coarse and an all-fine image."""
    return torch.tensor([[[1, 0], [0, 1]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]], dtype=torch.bool)


def layout(backend: str, dtype: torch.dtype, place: torch.device) -> Results:
    """Every field of the layout, exact."""
    made = mixed_scale_layout(small_mask().to(place), scale_factor=SCALE, num_prefix=PREFIX, backend=backend)
    for name in ("num_tokens", "cu_seqlens", "region_start", "batch_index", "token_index"):
        yield name, getattr(made, name).double()


def embed(images_dtype: torch.dtype, backend: str, dtype: torch.dtype, place: torch.device) -> Results:
    """Rows, and gradients of weight, bias, table and, if they are float, images."""
    torch.manual_seed(0)
    made = mixed_scale_layout(small_mask().to(place), scale_factor=SCALE, num_prefix=PREFIX, backend="reference")
    pixels = torch.randint(0, 256, (3, 3, 2 * PATCH * SCALE, 2 * PATCH * SCALE), dtype=torch.uint8)
    shapes = [(DIM, 3, PATCH, PATCH), (DIM,), (PREFIX + 4 * (1 + SCALE**2), DIM)]
    leaves = [(torch.randn(shape) * 0.1).to(place, dtype).requires_grad_() for shape in shapes]
    names = ["dweight", "dbias", "dtable"]
    images = pixels.to(place)
    if images_dtype != torch.uint8:
        images = (pixels / 255).to(place, torch.promote_types(dtype, torch.float32)).requires_grad_()
    rows = mixed_scale_embed(images, made, *leaves, patch_size=PATCH, mean=MEAN, std=STD, backend=backend)
    yield "rows", rows
    dout = torch.randn(rows.shape).to(place, dtype)
    if images.requires_grad:
        names, leaves = [*names, "dimages"], [*leaves, images]
    yield from zip(names, torch.autograd.grad(rows, leaves, dout), strict=True)


def unpack(backend: str, dtype: torch.dtype, place: torch.device) -> Results:
    """Grid, and the gradient of the tokens."""
    torch.manual_seed(0)
    made = mixed_scale_layout(small_mask().to(place), scale_factor=SCALE, num_prefix=PREFIX, backend="reference")
    tokens = torch.randn(made.total_tokens, DIM).to(place, dtype).requires_grad_()
    grid = unpack_to_grid(tokens, made, backend=backend)
    yield "grid", grid
    yield "dtokens", torch.autograd.grad(grid, tokens, torch.randn(grid.shape).to(place, dtype))[0]


def attention_kernels(backend: str, name: str) -> dict[str, str]:
    """Kernel by result."""
    if backend == "cuda":
        gradients = CUDA_GRADIENTS.get(name, [TWO_PASS + "dq_kernel", TWO_PASS + "dkv_kernel", TWO_PASS + "dkv_kernel"])
        forward = "varlen_attention_fwd.cu forward_kernel"
    else:
        forward, dq, dkv = (f"varlen_attention.py {kernel}" for kernel in TRITON_ATTENTION)
        gradients = [dq, dkv, dkv]
    dq, dkv, dweight = gradients
    return {"out": forward, "lse": forward, "dq": dq, "dk": dkv, "dv": dkv, "dweight": dweight}


def jobs() -> list[Job]:
    """All jobs, attention first."""
    made = []
    for backend in ("cuda", "triton", "cpu"):
        for name in LENGTHS:
            kernels = attention_kernels(backend, name) if backend != "cpu" else {}
            results, details = partial(attention, name), {"head_dim": HEAD_DIMS[name]}
            made.append(Job(f"{backend}-attention-{name}", backend, "varlen_attention", results, kernels, details))
        file = "mixed_scale_layout.py "
        kernels = dict.fromkeys(("num_tokens", "cu_seqlens", "region_start"), file + "_scan_kernel")
        kernels |= dict.fromkeys(("batch_index", "token_index"), file + "_fill_kernel")
        made.append(Job(f"{backend}-layout", backend, "mixed_scale_layout", layout, kernels))
        file = "mixed_scale_embed.py "
        kernels = {"rows": file + "_fwd_kernel", "dweight": file + "_gather_kernel"}
        kernels |= {"dtable": file + "_dtable_kernel", "dimages": file + "_dimages_kernel"}
        for dtype in (torch.uint8, torch.float32):
            name = f"{backend}-embed-{short_name(dtype)}"
            made.append(
                Job(name, backend, "mixed_scale_embed", partial(embed, dtype), kernels, {"images_dtype": dtype})
            )
        file = "unpack_to_grid.py "
        kernels = {"grid": file + "_fwd_kernel", "dtokens": file + "_bwd_kernel"}
        made.append(Job(f"{backend}-unpack", backend, "unpack_to_grid", unpack, kernels))
    return made


def supported(job: Job, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the job's backend can run it on this machine."""
    kind = torch.bool if job.operator == "mixed_scale_layout" else dtype
    return job.backend in testing.backends_for(job.operator, device.type, kind, **job.details)
