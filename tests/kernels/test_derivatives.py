"""Forward-mode and second derivatives of every operator, and the transforms of `torch.func`."""

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

from msvit_kernels import mixed_scale_embed, mixed_scale_layout, testing, unpack_to_grid, varlen_attention

MASK = torch.tensor([[[True, False]], [[False, False]], [[True, True]]])
LENGTHS = [3, 0, 4, 1]


def attention(backend, weights="fractional"):
    """The operator as a function of all its differentiable arguments, and such arguments in fp64."""
    q, k, v = testing.qkv_views(sum(LENGTHS), 2, 16, torch.float64, "cpu")
    weight = testing.key_weights(weights, sum(LENGTHS)).double()
    offsets = testing.offsets(LENGTHS)

    def call(q, k, v, weight):
        return varlen_attention(q, k, v, offsets, max(LENGTHS), key_weight=weight, return_lse=True, backend=backend)

    return call, [q, k, v, weight]


def plain_attention(backend):
    """Without weights, which takes a shorter path if there is nothing to record."""
    leaves = attention(backend)[1][:3]
    return lambda q, k, v: varlen_attention(q, k, v, testing.offsets(LENGTHS), max(LENGTHS), backend=backend), leaves


def embed(backend, images_dtype=torch.float64):
    layout = mixed_scale_layout(MASK, num_prefix=1)
    images = torch.randn(3, 3, 8, 16, dtype=torch.float64)
    parameters = [torch.randn(size, dtype=torch.float64) for size in [(8, 3, 4, 4), (8,), (layout.num_candidates, 8)]]
    pixels = (images.abs() * 80).clamp(max=255).to(torch.uint8) if images_dtype == torch.uint8 else None

    def call(*leaves):
        inputs = leaves if pixels is None else (pixels, *leaves)
        options = {"patch_size": 4, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "backend": backend}
        return mixed_scale_embed(inputs[0], layout, *inputs[1:], **options)

    return call, parameters if pixels is not None else [images, *parameters]


def unpack(backend):
    layout = mixed_scale_layout(MASK, num_prefix=1)
    tokens = torch.randn(layout.total_tokens, 8, dtype=torch.float64)
    return lambda tokens: unpack_to_grid(tokens, layout, backend=backend), [tokens]


CASES = {
    "varlen_attention": attention,
    "varlen_attention-plain": plain_attention,
    "mixed_scale_embed": embed,
    "mixed_scale_embed-uint8": lambda backend: embed(backend, torch.uint8),
    "unpack_to_grid": unpack,
}


def loss(call):
    def scalar(*leaves):
        results = call(*leaves)
        results = results if isinstance(results, tuple) else (results,)
        # lse is -inf for a query whose keys all have weight 0
        return sum(x.masked_fill(x == -torch.inf, 0).pow(2).sum() for x in results)

    return scalar


def gradients(call, leaves):
    return func.grad(loss(call), tuple(range(len(leaves))))(*leaves)


def jvp(call, leaves, tangents):
    return func.jvp(call, tuple(leaves), tuple(tangents))[1]


def dual_tensors(call, leaves, tangents):
    with forward_ad.dual_level():
        results = call(*(forward_ad.make_dual(x, tangent) for x, tangent in zip(leaves, tangents, strict=True)))
        results = results if isinstance(results, tuple) else (results,)
        return tuple(forward_ad.unpack_dual(x).tangent for x in results)


def reverse_over_reverse(call, leaves, tangents):
    return func.vjp(lambda *xs: gradients(call, xs), *leaves)[1](tuple(tangents))


def forward_over_reverse(call, leaves, tangents):
    return func.jvp(lambda *xs: gradients(call, xs), tuple(leaves), tuple(tangents))[1]


def gradient_penalty(call, leaves, tangents):
    leaves = [x.detach().requires_grad_() for x in leaves]
    first = torch.autograd.grad(loss(call)(*leaves), leaves, create_graph=True)
    return torch.autograd.grad(sum(x.pow(2).sum() for x in first), leaves)


def per_sample_gradients(call, leaves, tangents):
    first, *others = leaves
    samples = torch.stack([first, first * 0.5], dim=1)
    return (func.vmap(func.grad(lambda x: loss(call)(x, *others)), in_dims=1)(samples),)


DERIVATIVES = [
    jvp,
    dual_tensors,
    reverse_over_reverse,
    forward_over_reverse,
    gradient_penalty,
    per_sample_gradients,
]


def targets():
    details = {"varlen_attention": {"head_dim": 16}, "mixed_scale_embed": {"images_dtype": torch.float32}}
    for case in CASES:
        operator = case.split("-")[0]
        for backend in testing.backends_for(operator, "cpu", torch.float32, **details.get(operator, {})):
            for derivative in DERIVATIVES:
                # The formulas are the same for every backend, and an interpreted kernel takes seconds.
                if backend in ("cpu", "reference") or derivative in (jvp, gradient_penalty):
                    yield pytest.param(case, backend, derivative, id=f"{case}-{backend}-{derivative.__name__}")


@pytest.mark.parametrize(("case", "backend", "derivative"), list(targets()))
def test_every_backend_against_fp64(case, backend, derivative):
    torch.manual_seed(0)

    def results(backend, dtype):
        torch.manual_seed(1)
        call, leaves = CASES[case](backend)
        leaves = [x.to(dtype) for x in leaves]
        found = derivative(call, leaves, [torch.randn(x.shape, dtype=torch.float64).to(dtype) for x in leaves])
        return found if isinstance(found, tuple) else (found,)

    oracle, eager = results("reference", torch.float64), results("reference", torch.float32)
    for at, values in enumerate(zip(results(backend, torch.float32), eager, oracle, strict=True)):
        # Second derivatives are differences of products of several terms of this size.
        testing.assert_accurate(f"result {at}", *values, summand=8 * max(oracle[at].abs().max().item(), 1.0))


@pytest.mark.parametrize("case", CASES)
def test_reference_against_finite_differences(case):
    torch.manual_seed(0)
    call, leaves = CASES[case]("reference")
    if case == "varlen_attention":
        leaves[3] = leaves[3] + 0.1  # central differences must not step below 0
    leaves = [x.requires_grad_() for x in leaves]
    assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, leaves, check_fwd_over_rev=True, fast_mode=True)


def test_attention_with_weights_of_zero_against_dense_attention():
    torch.manual_seed(0)
    call, leaves = attention("reference", "binary")
    assert (leaves[3] == 0).any()

    def dense(q, k, v, weight):
        outs, statistics = [], []
        for rows in torch.arange(sum(LENGTHS)).split(LENGTHS):
            e = torch.einsum("ihd,jhd->hij", q[rows], k[rows]).mul(q.shape[2] ** -0.5).exp()
            total = (e * weight[rows]).sum(-1, keepdim=True)
            outs.append(torch.einsum("hij,jhd->ihd", e * weight[rows] / total, v[rows]))
            statistics.append(total.squeeze(-1).log())
        return torch.cat(outs), torch.cat(statistics, dim=1)

    leaves[3][-1] = 1  # of the sequence of one token, whose sum would be 0
    tangents = [torch.randn_like(x) for x in leaves]
    for derivative in (jvp, reverse_over_reverse, forward_over_reverse, gradient_penalty):
        for actual, expected in zip(
            derivative(call, leaves, tangents), derivative(dense, leaves, tangents), strict=True
        ):
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("derivative", [jvp, reverse_over_reverse, forward_over_reverse, gradient_penalty])
@pytest.mark.parametrize("fault", ["score", "nan", "tiny"])
def test_extreme_keys_have_finite_derivatives(fault, derivative):
    """As the first derivatives: a key of weight 0 with a score far above the others, or with NaN; tiny weights."""
    call, leaves = attention("reference", "fractional")
    leaves[3][:] = 1e-310 if fault == "tiny" else leaves[3] + 0.1
    if fault != "tiny":
        leaves[3][1] = 0
        leaves[1][1] = torch.nan if fault == "nan" else 3000 * leaves[0][0].sign()
        leaves[2][1] = torch.nan if fault == "nan" else 0
    tangents = [torch.randn_like(x) for x in leaves]
    tangents[3][:] = 0
    call_of_qkv = lambda q, k, v: call(q, k, v, leaves[3])  # noqa: E731
    for x in derivative(call_of_qkv, leaves[:3], tangents[:3]):
        keep = torch.arange(len(x)) != 1 if fault == "nan" and x.dim() == 3 else slice(None)
        assert x[keep].isfinite().all()


def test_a_sequence_without_weight_has_derivatives_of_zero():
    call, leaves = attention(None, "zeros")
    leaves = [x.float() for x in leaves]
    tangents = [torch.ones_like(x) for x in leaves]
    for derivative in (reverse_over_reverse, forward_over_reverse):
        assert all((x == 0).all() for x in derivative(call, leaves, tangents))
    out, lse = jvp(call, leaves, tangents)
    assert (out == 0).all()
    assert (lse == 0).all()


def test_hessian():
    call, leaves = attention("reference")
    f = lambda q: loss(call)(q, *leaves[1:])  # noqa: E731
    torch.testing.assert_close(func.hessian(f)(leaves[0]), func.jacrev(func.jacrev(f))(leaves[0]))


@pytest.mark.parametrize("case", CASES)
def test_nested_forward_mode_is_refused(case):
    call, leaves = CASES[case]("reference")
    inner = lambda *xs: func.jvp(call, xs, tuple(leaves))[1]  # noqa: E731
    with pytest.raises(NotImplementedError, match=f"msvit::{case.split('-')[0]}.*use torch.func.grad"):
        func.jvp(inner, tuple(leaves), tuple(leaves))
