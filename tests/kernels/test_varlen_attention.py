"""`varlen_attention` of every backend against fp64, and the properties that do not depend on numbers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from msvit_kernels import dispatch, testing, varlen_attention
from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward
from msvit_kernels.ops.arguments import flattener
from msvit_kernels.testing import DEVICES
from tests.kernels.attention_helpers import (
    LENGTHS,
    PROPERTY_TARGETS,
    TARGETS,
    check_accuracy,
    common_sizes,
    few_lengths,
    leaf,
    make_inputs,
    rounding,
    run,
)


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


@pytest.mark.fewer_cases(keep=lambda target, **lengths: target[2] != torch.float16)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("lengths", "lengths_k"),
    [([1, 33, 5], [7, 0, 70]), ([1, 33, 5], [1, 1, 1]), ([1, 33, 5], [130, 64, 0]), ([0, 33, 0], [7, 40, 9])],
    ids=str,
)
def test_keys_with_offsets_of_their_own(target, lengths, lengths_k, poisoned_memory):
    backend, device, dtype = target
    head_dim, _ = common_sizes(target, 32, 0)
    check_accuracy(make_inputs(lengths, 2, head_dim, dtype, device, "fractional", lengths_k), backend)


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
def test_positive_weights_of_many_keys(target):
    # More keys than a block of any backend has, and none that the CPU kernels leave out.
    backend, device, dtype = target
    head_dim, _ = common_sizes(target, 32, 0)
    inputs = make_inputs([300], 1, head_dim, dtype, device, "fractional")
    inputs[3]["key_weight"] += 0.1
    check_accuracy(inputs, backend)


@pytest.mark.parametrize("target", PROPERTY_TARGETS)
def test_scores_far_below_zero(target):
    # So far that exp(score) is 0: a padding key, whose score is 0, must not become the maximum of a row.
    backend, device, dtype = target
    head_dim, _ = common_sizes(target, 32, 0)
    (q, k, v), *others = make_inputs([49], 1, head_dim, dtype, device)
    check_accuracy(((q.abs() + 5, -(k.abs() + 5), v), *others), backend)


@pytest.mark.parametrize("target", [target for target in TARGETS if target.values[0][2] == torch.bfloat16])
def test_output_rounds_to_the_nearest_even_bf16(target):
    backend, device, dtype = target
    head_dim, num_heads = common_sizes(target, 32, 1)
    steps = 1 + 2**-7 * torch.tensor([[0.0, 1.0], [1.0, 2.0]], device=device)  # each mean is between two bf16 numbers
    v = steps.repeat(1, head_dim // 2)[:, None].expand(-1, num_heads, -1).to(dtype)
    out = varlen_attention(torch.zeros_like(v), v, v, testing.offsets([2], device), 2, backend=backend)
    assert torch.equal(out, torch.tensor([1, 1 + 2**-6], device=device).to(dtype).repeat(2, num_heads, head_dim // 2))


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
