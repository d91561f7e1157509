"""`varlen_attention` of every backend against fp64, and the properties that do not depend on numbers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from msvit_kernels import dispatch, testing, validation, varlen_attention
from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward
from msvit_kernels.ops.arguments import flattener
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


def run(inputs, backend, dtype=None):
    """Outputs and gradients of one call, by name; `dtype` casts the inputs first, and fp64 also the statistics."""
    qkv, cu_seqlens, max_seqlen, arguments, dout, dlse = inputs
    qkv = [leaf(x if dtype is None else x.to(dtype)) for x in qkv]
    arguments = dict(arguments)
    weight = arguments["key_weight"]
    if weight is not None:
        weight = arguments["key_weight"] = leaf(weight.double() if dtype == torch.float64 else weight)
    out, lse = varlen_attention(*qkv, cu_seqlens, max_seqlen, **arguments, return_lse=True, backend=backend)
    dlse = dlse.to(lse.dtype).masked_fill(lse == -torch.inf, 0)
    torch.autograd.backward([out, lse], [dout.to(out.dtype), dlse])
    results = {"out": out, "lse": lse, "dq": qkv[0].grad, "dk": qkv[1].grad, "dv": qkv[2].grad}
    if weight is not None:
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


@pytest.mark.fewer_cases(keep=few_lengths)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("weights", ["none", "binary", "fractional"])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_forward_and_backward_match_fp64(target, lengths, weights, poisoned_memory):
    backend, device, dtype = target
    check_accuracy(make_inputs(lengths, 2, 64, dtype, device, weights), backend)


@pytest.mark.fewer_cases(
    keep=lambda target, head_dim: target[2] == torch.bfloat16 or (target[2] == torch.float32 and head_dim == 128)
)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("head_dim", [16, 24, 32, 40, 64, 72, 80, 128])
def test_every_head_dim(target, head_dim, poisoned_memory):
    backend, device, dtype = target
    check_accuracy(make_inputs([50, 0, 17], 3, head_dim, dtype, device, "fractional"), backend)


@pytest.mark.fewer_cases(keep=lambda target, lengths_k: target[2] != torch.float16)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("lengths_k", [[7, 0, 70], [1, 1, 1], [130, 64, 0]], ids=str)
def test_keys_with_offsets_of_their_own(target, lengths_k, poisoned_memory):
    backend, device, dtype = target
    head_dim, _ = common_sizes(target, 32, 0)
    inputs = make_inputs([1, 33, 5], 2, head_dim, dtype, device, "fractional", lengths_k)
    check_accuracy(inputs, backend)


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.data(),
    head_dim=st.sampled_from([16, 32, 40, 64, 80, 128]),
    weights=st.sampled_from(["none", "ones", "zeros", "binary", "fractional"]),
)
def test_drawn_lengths(target, data, head_dim, weights):
    backend, device, dtype = target
    emulated = device == "cpu" and backend in ("cuda", "triton")
    lengths = [0, 1, 49, 196, 450] if emulated else [0, 1, 49, 196, 577, 1025]
    lengths = data.draw(st.lists(st.sampled_from(lengths), min_size=1, max_size=3))
    if testing.compiles(backend, device):
        head_dim, lengths = 64, [*lengths, 196]  # the kernels of the tests above
    check_accuracy(make_inputs(lengths, 1, head_dim, dtype, device, weights), backend)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradcheck(weighted):
    inputs = make_inputs([3, 0, 5], 2, 16, torch.float64, weights="fractional" if weighted else "none")
    (q, k, v), cu_seqlens, max_seqlen, arguments, _, _ = inputs
    weight = arguments["key_weight"]
    leaves = [leaf(x) for x in (q, k, v)]
    if weighted:
        # Central differences must not step below zero, so the weights of this test stay above it.
        leaves.append(leaf(weight.double() + 0.1))

    def call(q, k, v, weight=None):
        return varlen_attention(
            q, k, v, cu_seqlens, max_seqlen, key_weight=weight, return_lse=True, backend="reference"
        )

    assert torch.autograd.gradcheck(call, leaves)


def test_weight_gradient_at_zero_is_the_one_sided_derivative():
    inputs = make_inputs([6, 4], 2, 16, torch.float64, weights="zeros")
    (q, k, v), cu_seqlens, max_seqlen, _, dout, _ = inputs
    weight = torch.tensor([1, 0, 0, 1, 0, 1, 0, 1, 0, 1], dtype=torch.float64)

    def loss(weight):
        out = varlen_attention(q, k, v, cu_seqlens, max_seqlen, key_weight=weight, backend="reference")
        return (out * dout).sum()

    at_zero = leaf(weight)
    loss(at_zero).backward()
    step = 1e-7
    for j in range(len(weight)):
        nudged = weight.clone()
        nudged[j] += step
        expected = (loss(nudged) - loss(weight)) / step
        torch.testing.assert_close(at_zero.grad[j], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
def test_packed_equals_padded_sdpa(target):
    backend, device, dtype = target
    lengths = [9, 30, 1]
    (q, k, v), cu_seqlens, max_seqlen, _, _, _ = make_inputs(lengths, 2, 32, dtype, device)
    out = varlen_attention(q, k, v, cu_seqlens, max_seqlen, backend=backend)
    pad = [torch.nn.utils.rnn.pad_sequence(x.split(lengths), batch_first=True).transpose(1, 2) for x in (q, k, v)]
    mask = torch.arange(max_seqlen, device=device) < torch.tensor(lengths, device=device)[:, None]
    padded = F.scaled_dot_product_attention(*pad, attn_mask=mask[:, None, None])
    torch.testing.assert_close(out, padded.transpose(1, 2)[mask], **rounding(dtype))


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
def test_result_does_not_depend_on_the_neighbours(target):
    backend, device, dtype = target
    lengths = [50, 13, 64]
    inputs = make_inputs(lengths, 2, 64, dtype, device, "fractional")
    together = run(inputs, backend)
    (q, k, v), _, _, arguments, dout, dlse = inputs
    middle = slice(50, 63)
    alone = run(
        (
            (q[middle], k[middle], v[middle]),
            testing.offsets([13], device),
            13,
            {"key_weight": arguments["key_weight"][middle]},
            dout[middle],
            dlse[:, middle],
        ),
        backend,
    )
    for name, x in alone.items():
        part = together[name][:, middle] if name == "lse" else together[name][middle]
        torch.testing.assert_close(part, x, **rounding(dtype), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
def test_bits_do_not_depend_on_the_order_of_the_batch(target):
    backend, device, dtype = target
    lengths = [70, 0, 130, 31, 1]
    inputs = make_inputs(lengths, 2, 64, dtype, device, "fractional")
    (q, k, v), _, max_seqlen, arguments, dout, dlse = inputs
    rows = torch.cat([part.flip(0) for part in torch.arange(sum(lengths)).flip(0).split(lengths[::-1])]).to(device)
    weight = arguments["key_weight"][rows]
    turned = [x[rows] for x in (q, k, v)], testing.offsets(lengths[::-1], device), max_seqlen, {"key_weight": weight}
    results, others = run(inputs, backend), run((*turned, dout[rows], dlse[:, rows]), backend)
    for name, x in results.items():
        assert torch.equal(x[:, rows] if name == "lse" else x[rows], others[name]), name


@pytest.mark.parametrize("first", ["cuda", "triton"])
def test_one_backend_takes_the_gradient_of_the_others_forward_pass(first):
    """A GPU does this if each direction is faster in another backend."""
    second = {"cuda": "triton", "triton": "cuda"}[first]
    device = DEVICES[-1]
    for backend in (first, second):
        if backend not in testing.backends_for("varlen_attention", device, torch.bfloat16, head_dim=64):
            pytest.skip(f"no {backend} backend for {device} tensors")
    lengths = [33, 0, 64, 5]
    (q, k, v), offsets, longest, arguments, dout, dlse = make_inputs(
        lengths, 2, 64, torch.bfloat16, device, "fractional"
    )
    weight = arguments["key_weight"]
    weight[-5:] = 0  # a sequence without an active key: lse is -inf

    def gradients(dtype, forward, backward):
        tensors, kind = [x.to(dtype) for x in (q, k, v)], torch.promote_types(dtype, torch.float32)
        call = VarlenAttention(*tensors, offsets, offsets, longest, longest, 0.125, weight.to(kind))
        out, lse = dispatch.function("varlen_attention", forward, "varlen_attention_fwd")(call)
        upstream = dlse.to(kind).masked_fill(lse == -torch.inf, 0)
        run = dispatch.function("varlen_attention", backward, "varlen_attention_bwd")
        return run(VarlenAttentionBackward(call, out, lse, dout.to(dtype), upstream, needs_dweight=True))

    oracle = gradients(torch.float64, "reference", "reference")
    eager = gradients(torch.bfloat16, "reference", "reference")
    for name, *values in zip(("dq", "dk", "dv", "dweight"), gradients(torch.bfloat16, first, second), eager, oracle,
                             strict=True):  # fmt: skip
        testing.assert_accurate(name, *values, 8)


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


@pytest.mark.skipif("cuda" not in DEVICES, reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("target", [target for target in PROPERTY_TARGETS if target.values[0][0] in ("cuda", "triton")])
def test_graph_replay_equals_eager(target, monkeypatch):
    monkeypatch.delenv("MSVIT_CHECK", raising=False)  # would look at what the device holds
    backend, device, dtype = target
    lengths = [70, 196, 31]
    (q, k, v), cu_seqlens, max_seqlen, arguments, dout, _ = make_inputs(lengths, 6, 64, dtype, device, "fractional")
    leaves = [leaf(x) for x in (q, k, v, arguments["key_weight"])]

    def step():
        out = varlen_attention(*leaves[:3], cu_seqlens, max_seqlen, key_weight=leaves[3], backend=backend)
        return [out, *torch.autograd.grad(out, leaves, dout)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    # Other numbers and other lengths in the same memory: the graph must read both when it is replayed.
    with torch.no_grad():
        for x in leaves[:3]:
            x.copy_(torch.randn_like(x))
    cu_seqlens.copy_(testing.offsets([196, 1, 100], device))
    graph.replay()
    for x, y in zip(captured, step(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.skipif("cuda" not in DEVICES, reason="takes a GPU to be quick")
@pytest.mark.parametrize("target", [target for target in TARGETS if target.values[0][1] == "cuda"])
def test_long_sequences_on_a_gpu(target):
    backend, device, dtype = target
    check_accuracy(make_inputs([8192, 0, 1024, 577, 4000], 1, 64, dtype, device, "fractional"), backend)


@pytest.mark.fewer_cases(keep=lambda target: target[2] == torch.bfloat16)
@pytest.mark.parametrize("target", TARGETS)
def test_same_inputs_give_the_same_bits(target):
    backend, device, dtype = target
    inputs = make_inputs([70, 0, 196, 31], 3, 64, dtype, device, "fractional")
    first, second = run(inputs, backend), run(inputs, backend)
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cpu_bits_do_not_depend_on_threads(dtype, set_threads):
    pytest.importorskip("msvit_kernels._C")
    inputs = make_inputs([300, 64, 577], 3, 64, dtype, weights="fractional")
    results = []
    for n in (1, 2, 3, 7):
        set_threads(n)
        results.append(run(inputs, "cpu"))
    for other in results[1:]:
        for name, x in results[0].items():
            assert torch.equal(x, other[name]), name


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


def test_opcheck():
    (q, k, v), cu_seqlens, max_seqlen, arguments, _, _ = make_inputs([3, 0, 9], 2, 16, torch.float32, weights="binary")
    for grad in (False, True):
        leaves = [x.detach().requires_grad_(grad) for x in (q, k, v, arguments["key_weight"])]
        call = VarlenAttention(*leaves[:3], cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, 0.25, leaves[3])
        torch.library.opcheck(torch.ops.msvit.varlen_attention.default, (*flattener(type(call))(call), None))


def test_compile_keeps_one_graph():
    (q, k, v), cu_seqlens, max_seqlen, arguments, _, _ = make_inputs([3, 0, 9], 2, 16, torch.float32, weights="binary")

    def call(q, k, v, weight):
        return varlen_attention(q * 2, k, v, cu_seqlens, max_seqlen, key_weight=weight).sin()

    leaves = [leaf(x) for x in (q, k, v, arguments["key_weight"])]
    expected = torch.autograd.grad(call(*leaves).sum(), leaves)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(*leaves).sum(), leaves)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_dispatch_modes_see_the_operator_also_where_a_plain_call_would_skip_it():
    seen = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    (q, k, v), cu_seqlens, max_seqlen, _, _, _ = make_inputs([3, 4], 2, 16, torch.float32)
    plain = varlen_attention(q, k, v, cu_seqlens, max_seqlen)
    with Recorder(), torch.no_grad():
        recorded = varlen_attention(q, k, v, cu_seqlens, max_seqlen)
    assert torch.ops.msvit.varlen_attention.default in seen
    assert torch.equal(plain, recorded)
    with FakeTensorMode() as mode:
        fake = varlen_attention(*(mode.from_tensor(x) for x in (q, k, v, cu_seqlens)), max_seqlen)
    assert fake.shape == q.shape
