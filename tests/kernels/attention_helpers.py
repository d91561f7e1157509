"""Inputs, backends and the check of accuracy that the tests of `varlen_attention` share."""

import pytest
import torch

from msvit_kernels import testing, varlen_attention
from msvit_kernels.testing import DEVICES

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TARGETS = [
    pytest.param((backend, device, dtype), id=f"{backend}-{device}-{str(dtype).removeprefix('torch.')}")
    for device in DEVICES
    for dtype in DTYPES
    for backend in testing.backends_for("varlen_attention", device, dtype, head_dim=64)
    if backend != "reference"
]
# One dtype of each backend for what does not depend on it: the first that it has, or the one that it compiles soonest.
FIRST_DTYPES = {target.values[0][:2]: target.values[0] for target in reversed(TARGETS)}
FIRST_DTYPES |= {key: (*key, torch.bfloat16) for key in FIRST_DTYPES if testing.compiles(*key)}
FIRST_DTYPES |= {("reference", device): ("reference", device, torch.float32) for device in DEVICES}
PROPERTY_TARGETS = [
    pytest.param(target, id="-".join(map(str, key))) for key, target in sorted(FIRST_DTYPES.items(), key=lambda x: x[0])
]
LENGTHS = {
    "vit": [64, 196, 98, 127],
    "empty_sequences": [0, 5, 0, 0, 17, 0],
    "one_token": [1],
    "single_image": [197],
    "partial_tiles": [49, 65, 33, 16, 15],
}


def make_inputs(lengths, num_heads, head_dim, dtype, device="cpu", weights="none", lengths_k=None):
    """Inputs of one call and an upstream gradient for both outputs."""
    total, total_k = sum(lengths), sum(lengths_k or lengths)
    q, k, v = testing.qkv_views(max(total, total_k), num_heads, head_dim, dtype, device)
    arguments = {"key_weight": testing.key_weights(weights, total_k, device)}
    if lengths_k is not None:
        arguments["cu_seqlens_k"] = testing.offsets(lengths_k, device)
        arguments["max_seqlen_k"] = max(lengths_k)
    dout = torch.randn(total, num_heads, head_dim, device=device).to(dtype)
    dlse = torch.randn(num_heads, total, device=device)
    qkv = q[:total], k[:total_k], v[:total_k]
    return qkv, testing.offsets(lengths, device), max(lengths, default=0), arguments, dout, dlse


def run(inputs, backend, dtype=None, needs_dweight=True):
    """Outputs and gradients of one call, by name; `dtype` casts the inputs first, and fp64 also the statistics."""
    qkv, cu_seqlens, max_seqlen, arguments, dout, dlse = inputs
    qkv = [leaf(x if dtype is None else x.to(dtype)) for x in qkv]
    arguments = dict(arguments)
    weight = arguments["key_weight"]
    if weight is not None:
        weight = weight.double() if dtype == torch.float64 else weight
        weight = arguments["key_weight"] = leaf(weight) if needs_dweight else weight
    out, lse = varlen_attention(*qkv, cu_seqlens, max_seqlen, **arguments, return_lse=True, backend=backend)
    dlse = dlse.to(lse.dtype).masked_fill(lse == -torch.inf, 0)
    torch.autograd.backward([out, lse], [dout.to(out.dtype), dlse])
    results = {"out": out, "lse": lse, "dq": qkv[0].grad, "dk": qkv[1].grad, "dv": qkv[2].grad}
    if weight is not None and needs_dweight:
        results["dweight"] = weight.grad
    return {name: x.detach() for name, x in results.items()}


def leaf(x):
    """`x` as a leaf that keeps its strides."""
    return x.detach().requires_grad_()


def rounding(dtype):
    """Bounds for two ways to compute the same: two units in the last place, a hundred where sums are of this dtype."""
    units = (100 if dtype == torch.float32 else 2) * torch.finfo(dtype).eps
    return {"rtol": units, "atol": units}


def few_lengths(target, lengths, weights):
    """Every size of tile with weights and some without in bf16, that of an image in the other dtypes."""
    if target[2] == torch.bfloat16:
        return weights != "none" or max(lengths) > 32
    return max(lengths) > 128


def common_sizes(target, head_dim, max_seqlen):
    """head_dim and bound of the lengths; if each pair is compiled, those of other tests."""
    return (64, 64) if testing.compiles(*target[:2]) else (head_dim, max_seqlen)


def check_accuracy(inputs, backend):
    oracle = run(inputs, "reference", torch.float64)
    eager = run(inputs, "reference")
    # Scores and their gradients are dot products of head_dim unit terms; with one key per query they cancel to zero.
    product = inputs[0][0].shape[2] ** 0.5
    for name, actual in run(inputs, backend).items():
        summand = product if name in ("dq", "dk", "dweight") else 1.0
        testing.assert_accurate(name, actual, eager[name], oracle[name], summand)
