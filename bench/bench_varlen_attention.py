"""Times `varlen_attention` against the best that torch offers for the same sequences, forward and backward.

The work is self-attention inside every sequence of a packed batch, 6 heads of 64 as in ViT-S; q, k and v are views of
one packed projection. Alternatives in torch:

    sdpa loop        one scaled_dot_product_attention call for each sequence, results concatenated
    sdpa padded      one call on [batch, heads, longest, head_dim] with a key mask, without it where all lengths are
                     equal; padding beforehand and unpadding afterwards are not counted
    varlen_attn      torch.nn.attention.varlen (GPU)
    flex_attention   compiled, with a document mask (GPU)
    cudnn padded     as sdpa padded, by cuDNN (GPU)

The backward pass is timed alone, on a graph that is kept; ours includes the gradient of the key weights, which no
alternative computes. Operations: 4 n^2 heads head_dim forward, 2.5 times that backward.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from common import DTYPES
from operators import Case, CaseMaker, Setting, backends_to_time, check_baseline, gradients, main
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from msvit_kernels import testing, varlen_attention

NUM_HEADS, HEAD_DIM = 6, 64
# (number of sequences, shortest, longest)
SHAPES = {
    "cpu": [(16, 64, 196), (16, 49, 49), (16, 196, 196), (8, 576, 576), (4, 1024, 1024), (1, 196, 196), (1, 576, 576)],
    "cuda": [(256, 64, 196), (256, 196, 196), (64, 576, 576), (32, 1024, 1024), (1, 196, 196)],
    "quick": [(4, 16, 64), (1, 49, 49)],
}


class Inputs:
    """Packed sequences of random lengths, and the same padded."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        count, shortest, longest = shape
        self.lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
        self.lengths[0], self.lengths[-1] = shortest, longest
        self.longest, self.total = longest, sum(self.lengths)
        self.offsets = testing.offsets(self.lengths, device)
        qkv = torch.randn(self.total, 3, NUM_HEADS, HEAD_DIM, generator=generator).to(device, dtype)
        self.qkv = [x.detach().requires_grad_() for x in qkv.unbind(1)]
        self.dout = torch.randn(self.total, NUM_HEADS, HEAD_DIM, generator=generator).to(device, dtype)
        self.weight = torch.rand(self.total, generator=generator).to(device).requires_grad_()
        self.document = torch.arange(count, device=device).repeat_interleave(self.offsets.diff())
        # [batch, longest], True where there is a token
        self.present = torch.arange(longest, device=device) < self.offsets.diff()[:, None]

    def pad(self, x: Tensor) -> Tensor:
        """[total, heads, head_dim] -> [batch, heads, longest, head_dim]."""
        padded = x.new_zeros(*self.present.shape, *x.shape[1:])
        padded[self.present] = x.detach()
        return padded.transpose(1, 2)

    def unpad(self, x: Tensor) -> Tensor:
        """[batch, heads, longest, head_dim] -> [total, heads, head_dim]."""
        return x.transpose(1, 2)[self.present]

    def ours(self, backend: str, weighted: bool, dtype: torch.dtype | None = None) -> tuple[Tensor, list[Tensor]]:
        """Result and leaves of a call, in fp64 where `dtype` says so."""
        leaves = [*self.qkv, self.weight] if weighted else self.qkv
        if dtype is not None:
            leaves = [x.detach().to(dtype).requires_grad_() for x in leaves]
        weight = leaves[3] if weighted else None
        out = varlen_attention(*leaves[:3], self.offsets, self.longest, key_weight=weight, backend=backend)
        return out, leaves


def torch_methods(x: Inputs) -> dict[str, tuple[Callable[[], Tensor], list[Tensor], Tensor]]:
    """By name: the forward call, its leaves, the upstream gradient in its layout."""
    padded = [x.pad(leaf).requires_grad_() for leaf in x.qkv]
    mask = None if x.present.all() else x.present[:, None, None, :]
    padded_dout = x.pad(x.dout)

    def loop() -> Tensor:
        # [n, heads, head_dim] -> [1, heads, n, head_dim]
        parts = zip(*(leaf.split(x.lengths) for leaf in x.qkv), strict=True)
        outs = [F.scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in qkv)) for qkv in parts]
        return torch.cat([out[0].transpose(0, 1) for out in outs])

    def sdpa() -> Tensor:
        return F.scaled_dot_product_attention(*padded, attn_mask=mask)

    methods = {"torch sdpa loop": (loop, x.qkv, x.dout), "torch sdpa padded": (sdpa, padded, padded_dout)}
    if x.dout.device.type == "cuda":
        methods |= _gpu_methods(x, padded, padded_dout, sdpa)
    return methods


def _gpu_methods(x: Inputs, padded: list[Tensor], padded_dout: Tensor, sdpa: Callable[[], Tensor]) -> dict[str, Any]:
    def cudnn() -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return sdpa()

    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    document, offsets = x.document, x.offsets
    block_mask = create_block_mask(
        lambda b, h, q, k: document[q] == document[k], None, None, x.total, x.total, device=x.dout.device
    )
    flex = torch.compile(flex_attention)

    def flex_document() -> Tensor:
        return flex(*(leaf.transpose(0, 1)[None] for leaf in x.qkv), block_mask=block_mask)[0].transpose(0, 1)

    methods: dict[str, Any] = {
        "torch cudnn padded": (cudnn, padded, padded_dout),
        "torch flex_attention": (flex_document, x.qkv, x.dout),
    }
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        pass
    else:

        def varlen() -> Tensor:
            return varlen_attn(*x.qkv, offsets, offsets, x.longest, x.longest)

        methods["torch varlen_attn"] = (varlen, x.qkv, x.dout)
    return {name: method for name, method in methods.items() if _runs(name, method[0])}


def _runs(name: str, call: Callable[[], Tensor]) -> bool:
    try:
        call()
    except Exception as error:  # what torch refuses on this GPU or in this dtype is no part of the comparison
        print(f"{name} is left out: {str(error).splitlines()[0]}")
        return False
    return True


def make_case(x: Inputs, fields: dict[str, Any], dtype: torch.dtype, backward: bool) -> Case:
    """All methods in one direction."""
    device = x.dout.device
    backends = backends_to_time("varlen_attention", device, dtype, head_dim=HEAD_DIM)
    alternatives = torch_methods(x)
    methods: dict[str, Callable[[], Any]] = {}
    for backend in backends:
        if backward:
            leaves = [*x.qkv, x.weight]
            methods[backend] = gradients(lambda backend=backend: x.ours(backend, weighted=True)[0], leaves, x.dout)
        else:
            methods[backend] = lambda backend=backend: x.ours(backend, weighted=False)[0]
    for name, (call, leaves, dout) in alternatives.items():
        methods[name] = gradients(call, leaves, dout) if backward else call

    def check() -> None:
        oracle = _results(x, "reference", backward, torch.float64)
        eager = _results(x, "reference", backward)
        for backend in (name for name in backends if name != "reference"):
            results = _results(x, backend, backward)
            for name, *values in zip(("dq", "dk", "dv", "dweight"), results, eager, oracle, strict=False):
                testing.assert_accurate(f"{backend} {name if backward else 'out'}", *values)
        plain = oracle[0] if not backward else x.ours("reference", weighted=False, dtype=torch.float64)[0]
        for name, (call, *_) in alternatives.items():
            out = call()
            check_baseline(name, x.unpad(out) if out.ndim == 4 else out, plain.detach())

    flop = 4.0 * sum(n * n for n in x.lengths) * NUM_HEADS * HEAD_DIM * (2.5 if backward else 1)
    # What has to be moved limits short sequences on a GPU; on a CPU they stay in its caches.
    moved = x.dout.numel() * x.dout.element_size() * (8 if backward else 4) if device.type == "cuda" else 0
    return Case(fields, methods, check, flop, moved, few=("reference",))


def _results(x: Inputs, backend: str, backward: bool, dtype: torch.dtype | None = None) -> list[Tensor]:
    out, leaves = x.ours(backend, weighted=backward, dtype=dtype)
    return list(torch.autograd.grad(out, leaves, x.dout.to(out.dtype))) if backward else [out]


def host_case(dtype_name: str, device: torch.device) -> Case:
    """One token, one head: what is left is what the host spends on a call."""
    dtype = DTYPES[dtype_name]
    q, k, v = testing.qkv_views(1, 1, 16, dtype, device)
    offsets = testing.offsets([1], device)
    heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
    methods: dict[str, Callable[[], Any]] = {
        backend: lambda backend=backend: varlen_attention(q, k, v, offsets, 1, backend=backend)
        for backend in backends_to_time("varlen_attention", device, dtype, head_dim=16)
    }
    methods["torch sdpa"] = lambda: F.scaled_dot_product_attention(*heads_first)
    fields = {"shape": "1 token (host cost)", "direction": "fwd", "dtype": dtype_name}

    def check() -> None:
        for name, call in methods.items():
            check_baseline(name, call().view(-1), v.view(-1).double())

    return Case(fields, methods, check, host=True)


def shape_case(shape: tuple[int, int, int], dtype_name: str, direction: str, device: torch.device) -> Case:
    """Inputs of a shape, and all methods on them."""
    count, shortest, longest = shape
    label = f"{count} x {shortest}" + (f"..{longest}" if longest > shortest else "")
    dtype = DTYPES[dtype_name]
    fields = {"shape": label, "direction": direction, "dtype": dtype_name}
    return make_case(Inputs(shape, dtype, device), fields, dtype, direction == "bwd")


def cases(setting: Setting) -> list[CaseMaker]:
    """Host cost, then every shape in every dtype and direction."""
    shapes = SHAPES["quick" if setting.quick else setting.device.type]
    makers: list[CaseMaker] = [partial(host_case, dtype_name, setting.device) for dtype_name in setting.dtypes]
    for dtype_name in setting.dtypes:
        for shape in shapes:
            makers += [partial(shape_case, shape, dtype_name, way, setting.device) for way in ("fwd", "bwd")]
    return makers


if __name__ == "__main__":
    main("varlen_attention", cases, __doc__)
