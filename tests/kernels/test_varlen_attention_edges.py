"""`varlen_attention` of every backend on extreme inputs: bounds, scales, strides, scores, weights, NaN, no tokens."""

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
@pytest.mark.parametrize("scale", [0.25, -0.25])
@pytest.mark.parametrize(("lengths", "hidden"), [([3], 1), ([600], 300)], ids=["one_key", "whole_blocks"])
def test_keys_whose_scores_are_minus_infinity_count_as_zero(target, lengths, hidden, scale):
    backend, device, dtype = target
    (q, k, v), *others = make_inputs(lengths, 1, 64, dtype, device, "ones")
    q, k = q.clone(), k.clone()
    q[:, :, 0], k[:, :, 0] = 1e20, 0
    k[:hidden, :, 0] = -1e20 if scale > 0 else 1e20
    inputs = ((q, k, v), *others)
    inputs[3]["softmax_scale"] = scale
    oracle, eager, actual = run(inputs, "reference", torch.float64), run(inputs, "reference"), run(inputs, backend)
    for name, x in actual.items():
        without_huge = (..., slice(1, None)) if name == "dk" else ...  # its first column is a sum of products with q
        testing.assert_accurate(name, x[without_huge], *(y[name][without_huge] for y in (eager, oracle)), summand=8)
    assert actual["dk"].isfinite().all()


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
def test_a_query_whose_scores_are_all_minus_infinity_returns_zero(target):
    backend, device, dtype = target
    (q, k, v), *others = make_inputs([40], 1, 64, dtype, device, "ones")
    q, k = q.clone(), k.clone()
    q[:, :, 0], k[:, :, 0] = 0, -1e20
    q[5, :, 0] = 1e20
    results = run(((q, k, v), *others), backend)
    assert (results["out"][5] == 0).all()
    assert (results["lse"][:, 5] == -torch.inf).all()
    assert (results["dq"][5] == 0).all()
    assert all(x[torch.arange(40) != 5].isfinite().all() for x in (results["out"], results["dq"], results["lse"].T))
    assert all(results[name].isfinite().all() for name in ("dk", "dv", "dweight"))


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
@pytest.mark.parametrize(
    ("row_of", "value", "length", "needs_dweight"),
    [
        pytest.param("k", torch.nan, 40, True, id="k_nan_short_dweight"),
        pytest.param("k", torch.inf, 40, False, id="k_inf_short"),
        pytest.param("v", torch.nan, 40, True, id="v_nan_short_dweight"),
        pytest.param("k", -torch.inf, 450, True, id="k_inf_long_dweight"),
        pytest.param("v", torch.nan, 450, False, id="v_nan_long"),
    ],
)
def test_a_key_of_weight_zero_may_hold_anything(target, row_of, value, length, needs_dweight):
    backend, device, dtype = target
    (q, k, v), *others = make_inputs([9, length], 1, 64, dtype, device, "fractional")
    weight = others[2]["key_weight"]
    rows = torch.tensor([9 + 3, 9 + length // 2, 9 + length - 1], device=device)
    weight[rows] = 0
    clean = run(((q, k, v), *others), backend, needs_dweight=needs_dweight)
    q, k, v = q.clone(), k.clone(), v.clone()
    (k if row_of == "k" else v)[rows, :, 5] = value
    results = run(((q, k, v), *others), backend, needs_dweight=needs_dweight)
    for name in results.keys() - {"dweight"}:
        assert torch.equal(results[name], clean[name]), name
    if needs_dweight:
        if value != value:
            assert results["dweight"][rows].isnan().all()
        results["dweight"][rows] = clean["dweight"][rows]
        assert torch.equal(results["dweight"], clean["dweight"])


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
@pytest.mark.parametrize(
    ("score", "dout_of_others", "length"), [(120, 0, 4), (120, 0, 450), (400, 0, 4), (94, 1e-9, 4)], ids=str
)
def test_the_weight_gradient_is_finite_if_its_summands_are(target, score, dout_of_others, length):
    """exp(score - lse) overflows at the last key, whose weight is 0, but the summands of the gradient do not."""
    backend, device, dtype = target
    (q, k, v), *others = make_inputs([length], 1, 64, dtype, device, "ones")
    q, k = torch.zeros_like(q), torch.zeros_like(k)
    q[1:, :, 0], k[-1, :, 0] = 1, score
    arguments, dout, dlse = others[2:]
    arguments["key_weight"][-1], arguments["softmax_scale"] = 0, 1.0
    dout[1:] *= dout_of_others
    dlse[:, 1:] = 0
    inputs = ((q, k, v), *others)
    oracle, eager = run(inputs, "reference", torch.float64), run(inputs, "reference")
    for name, actual in run(inputs, backend).items():
        assert actual.isfinite().all(), name
        testing.assert_accurate(name, actual, eager[name], oracle[name], summand=8)


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
@pytest.mark.parametrize(
    ("weights", "sharpness"),
    [
        pytest.param([3.4e38], 1, id="largest"),
        pytest.param([1e30, 0], 1, id="large_and_zero"),
        pytest.param([1e-39], 40, id="subnormal_sharp"),
        pytest.param([2.0**-149], 1, id="smallest"),
        pytest.param([2.0**-149, 1], 40, id="smallest_and_one_sharp"),
        pytest.param([2.0**-149, 3.4e38, 0, 1e-20, 1e20], 1, id="all"),
        pytest.param([2.0**-149, 3.4e38, 1e-20, 1e20], 40, id="all_sharp"),
    ],
)
def test_any_finite_key_weight(target, weights, sharpness):
    backend, device, dtype = target
    (q, k, v), *others = make_inputs([7, 300], 1, 64, dtype, device, "ones")
    q = q * sharpness
    weight = others[2]["key_weight"]
    weight.copy_(torch.tensor(weights, device=device).repeat(307)[:307])
    largest_log = float(weight[weight > 0].log2().abs().max())
    # Small upstream gradients, so that those of small weights are finite; these differ by factors of 1e80.
    upstream, unit = 2.0**-30, weight.double().masked_fill(weight == 0, 1)
    inputs = ((q, k, v), *others[:3], *(x * upstream for x in others[3:]))
    runs = run(inputs, backend), run(inputs, "reference"), run(inputs, "reference", torch.float64)
    for name in runs[0]:
        scale = {"out": 1, "lse": 1, "dweight": unit / upstream}.get(name, 1 / upstream)
        actual, eager, oracle = (x[name] * scale for x in runs)
        if name == "dweight":
            actual, eager = actual.float(), eager.float()
        # Exponentials are those of scores plus logarithms of weights, rounded at their magnitude.
        testing.assert_accurate(name, actual, eager, oracle, summand=8 * sharpness + largest_log)


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
