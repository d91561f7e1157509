"""`varlen_attention` of every backend on extreme inputs: bounds, scales, strides, weights of zero, NaN, no tokens."""

import pytest
import torch

from msvit_kernels import testing, validation, varlen_attention
from tests.kernels.attention_helpers import PROPERTY_TARGETS, common_sizes, leaf, make_inputs, run


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
def test_a_bound_far_above_the_lengths_changes_nothing(target):
    backend, device, dtype = target
    inputs = make_inputs([30, 0, 5], 2, 64, dtype, device, "fractional")
    expected = run(inputs, backend)
    for name, x in run((*inputs[:2], 2**31, *inputs[3:]), backend).items():
        assert torch.equal(x, expected[name]), name


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
@pytest.mark.parametrize("scale", [-0.3, 0.0, 5.0])
def test_any_finite_softmax_scale(target, scale):
    backend, device, dtype = target
    (q, k, v), cu_seqlens, max_seqlen, _, dout, _ = make_inputs([70, 300, 5], 1, 64, dtype, device)

    def gradients(dtype, backend):
        leaves = [leaf(x.to(dtype)) for x in (q, k, v)]
        out = varlen_attention(*leaves, cu_seqlens, max_seqlen, softmax_scale=scale, backend=backend)
        return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(dtype))]

    oracle, eager = gradients(torch.float64, "reference"), gradients(dtype, "reference")
    # Each exponential has the rounding of a score in it, which the gradient of v, a plain sum of them, shows.
    largest_score = abs(scale) * max(float((a @ b.T).abs().max()) for a, b in zip(*(
        x[:, 0].float().split([70, 300, 5]) for x in (q, k)), strict=True))  # fmt: skip
    for name, actual, expected, exact in zip("oqkv", gradients(dtype, backend), eager, oracle, strict=True):
        # A sharp softmax cancels in dq and dk what is the size of scale times a product of head_dim terms.
        testing.assert_accurate(name, actual, expected, exact, largest_score if name == "v" else 8 * max(1, abs(scale)))


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
def test_rows_further_apart_than_32_bits_count(target):
    backend, device, dtype = target
    if backend == "reference" or (dtype == torch.float32 and device == "cpu"):
        dtype = torch.bfloat16  # half the address space
    lengths, num_heads = [12, 7], 2
    head_dim, max_seqlen = common_sizes(target, 64, 12)
    shape = (sum(lengths), 3, num_heads, head_dim)
    strides = (2**27 + 8, num_heads * head_dim, head_dim, 1)
    try:
        storage = torch.empty((shape[0] - 1) * strides[0] + 3 * strides[1], dtype=dtype, device=device)
    except (RuntimeError, torch.OutOfMemoryError) as error:
        pytest.skip(f"needs {2 * shape[0] // 8} GiB of address space: {error}")
    far = storage.as_strided(shape, strides)
    near = torch.randn(shape, device=device).to(dtype)
    far.copy_(near)
    results = []
    for qkv in (far, near):
        leaves = [leaf(x) for x in qkv.unbind(1)]
        out = varlen_attention(*leaves, testing.offsets(lengths, device), max_seqlen, backend=backend)
        results.append([out.detach(), *torch.autograd.grad(out.float().square().sum(), leaves)])
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
def test_queries_without_active_keys_return_zero(target):
    backend, device, dtype = target
    head_dim, _ = common_sizes(target, 16, 0)
    inputs = make_inputs([4, 5], 2, head_dim, dtype, device, "ones")
    inputs[3]["key_weight"][4:] = 0
    results = run(inputs, backend)
    assert (results["out"][4:] == 0).all()
    assert (results["lse"][:, 4:] == -torch.inf).all()
    for name in ("dq", "dk", "dv", "dweight"):
        assert (results[name][4:] == 0).all(), name


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
def test_inactive_key_with_a_huge_score_changes_nothing(target):
    backend, device, dtype = target
    head_dim, max_seqlen = common_sizes(target, 16, 8)
    (q, k, v), cu_seqlens, _, _, _, _ = make_inputs([8], 1, head_dim, dtype, device)
    q, k, v = q.clone(), k.clone(), v.clone()
    weight = torch.ones(8, device=device)
    weight[3] = 0
    expected = varlen_attention(q, k, v, cu_seqlens, max_seqlen, key_weight=weight, backend=backend)
    k[3] = q[0] * 1e4
    leaves = [leaf(x) for x in (q, k, v)]
    out = varlen_attention(*leaves, cu_seqlens, max_seqlen, key_weight=weight, backend=backend)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)
    assert (leaves[1].grad[3] == 0).all()
    assert (leaves[2].grad[3] == 0).all()


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
@pytest.mark.parametrize("weights", ["none", "fractional"])
@pytest.mark.parametrize("length", [40, 450])
def test_nan_of_a_query_stays_in_its_row(target, length, weights):
    backend, device, dtype = target
    lengths = [9, length, 20]
    inputs = make_inputs(lengths, 1, 64, dtype, device, weights)
    q, k, v = (x.clone() for x in inputs[0])
    row, own = 9 + length // 2, slice(9, 9 + length)
    clean = run(((q, k, v), *inputs[1:]), backend)
    q[row, 0, 3] = torch.nan
    results = run(((q, k, v), *inputs[1:]), backend)
    for name in ("out", "lse", "dq"):
        actual, expected = (x[name].T if name == "lse" else x[name] for x in (results, clean))
        others = torch.arange(sum(lengths), device=device) != row
        assert actual[row].isnan().all(), name
        assert torch.equal(actual[others], expected[others]), name
    for name in ("dk", "dv"):
        assert_nan_in(own, name, results, clean, inputs[3]["key_weight"])
    if weights != "none":
        assert_nan_in(own, "dweight", results, clean)


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
@pytest.mark.parametrize("where", ["key", "weight"])
@pytest.mark.parametrize("length", [40, 450])
def test_nan_of_a_key_stays_in_its_sequence(target, length, where, monkeypatch):
    backend, device, dtype = target
    # Otherwise weights that are not finite are refused on the CPU.
    monkeypatch.setattr(validation, "checks_contents", lambda _: False)
    inputs = make_inputs([9, length, 20], 1, 64, dtype, device, "fractional")
    q, k, v = (x.clone() for x in inputs[0])
    weight = inputs[3]["key_weight"].clone()
    row = 9 + length // 2
    weight[row] = 1
    clean = run(((q, k, v), *inputs[1:3], {"key_weight": weight}, *inputs[4:]), backend)
    if where == "key":
        k[row, 0, 3] = torch.nan
    else:
        weight[row] = torch.nan
    results = run(((q, k, v), *inputs[1:3], {"key_weight": weight}, *inputs[4:]), backend)
    for name in ("out", "lse", "dq"):
        assert_nan_in(slice(9, 9 + length), name, results, clean)
    for name in ("dk", "dv"):
        assert_nan_in(slice(9, 9 + length), name, results, clean, weight)
    assert_nan_in(slice(9, 9 + length), "dweight", results, clean)


def assert_nan_in(own, name, results, clean, weight=None):
    """NaN in all rows of one sequence, but for keys of weight 0, where 0 times NaN is left to the backend; the bits of
    the run without NaN in the other sequences.
    """
    actual, expected = (x[name].T if name == "lse" else x[name] for x in (results, clean))
    inside = actual[own] if weight is None else actual[own][weight[own] != 0]
    assert inside.isnan().all(), name
    for others in (slice(0, own.start), slice(own.stop, None)):
        assert torch.equal(actual[others], expected[others]), name


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_no_tokens_at_all(target, lengths):
    backend, device, dtype = target
    results = run(make_inputs(lengths, 2, 32, dtype, device, "ones"), backend)
    assert results["out"].shape == (0, 2, 32)
    assert results["lse"].shape == (2, 0)


@pytest.mark.parametrize("kinds", [(torch.float32,) * 3, (torch.float32, torch.bfloat16, torch.float16)], ids=str)
def test_autocast_casts_as_for_scaled_dot_product_attention(kinds):
    lengths = [5, 0, 12]
    (q, k, v), cu_seqlens, max_seqlen, _, _, _ = make_inputs(lengths, 2, 32, torch.float32)
    q, k, v = (leaf(x.to(kind)) for x, kind in zip((q, k, v), kinds, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        out = varlen_attention(q, k, v, cu_seqlens, max_seqlen)
        assert out.dtype == torch.nn.functional.scaled_dot_product_attention(q, k, v).dtype == torch.bfloat16
    expected = varlen_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), cu_seqlens, max_seqlen)
    assert torch.equal(out, expected)
    out.float().sum().backward()
    assert q.grad.dtype == q.dtype


def test_autocast_leaves_double_and_refuses_mixed_dtypes_without_it():
    (q, k, v), cu_seqlens, max_seqlen, _, _, _ = make_inputs([5], 2, 32, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert varlen_attention(q, k, v, cu_seqlens, max_seqlen).dtype == torch.float64
    with pytest.raises(TypeError, match="k: expected dtype float64, got bfloat16"):
        varlen_attention(q, k.bfloat16(), v, cu_seqlens, max_seqlen)
