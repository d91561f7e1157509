"""Properties of the CUDA kernels in the emulator that operator tests do not check; races fail every test."""

import os

import pytest
import torch

from msvit_kernels import dispatch, testing, varlen_attention
from msvit_kernels.calls import VarlenAttention, VarlenAttentionBackward
from msvit_kernels.native_fields import attention_fields
from tests import cuda_emulator

SCHEDULES = ["forward", "reverse", "random:1", "random:2"]
# Short sequences stay in shared memory, long ones stream through it; the backward of each is another kernel.
LENGTHS = {"short": [49, 0, 130, 16], "long": [450, 33]}

# Bytes that a block may ask for, by compute capability.
SHARED_MEMORY = {"sm_80": 166912, "sm_86": 101376, "sm_90": 232448, "sm_120": 101376}

pytestmark = pytest.mark.skipif(not cuda_emulator.is_installed(), reason="needs the emulator (tests/cuda_emulator/)")


@pytest.fixture
def choose_device(monkeypatch):
    """Sets the device of the launchers: its multiprocessors, and the shared memory that a block may have."""
    from msvit_kernels.cuda import varlen_attention as cuda_attention

    def choose(num_multiprocessors=2, shared_memory_bytes=SHARED_MEMORY["sm_90"]):
        number = cuda_attention.kernels.emulator_device(num_multiprocessors, shared_memory_bytes)
        monkeypatch.setattr(cuda_attention, "device_index", lambda tensor: number)

    return choose


def take_statistics():
    from msvit_kernels.cuda.native import kernels

    return kernels.emulator_statistics()


def attention(lengths, num_heads, head_dim, dtype=torch.bfloat16, weights="fractional"):
    """Outputs and gradients, and the statistics of the forward and of the backward launches."""
    torch.manual_seed(0)
    total = sum(lengths)
    leaves = [x.detach().requires_grad_() for x in testing.qkv_views(total, num_heads, head_dim, dtype)]
    weight = testing.key_weights(weights, total)
    if weight is not None:
        leaves.append(weight.requires_grad_())
    take_statistics()
    offsets = testing.offsets(lengths)
    out = varlen_attention(*leaves[:3], offsets, max(lengths), key_weight=weight, backend="cuda")
    forward = take_statistics()
    grads = torch.autograd.grad(out, leaves, torch.randn_like(out))
    return [out.detach(), *grads], forward, take_statistics()


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_bits_do_not_depend_on_the_order_of_threads_and_blocks(lengths, monkeypatch):
    results = []
    for schedule in SCHEDULES:
        monkeypatch.setenv("MSVIT_EMULATED_SCHEDULE", schedule)
        results.append(attention(lengths, 2, 64)[0])
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_bits_do_not_depend_on_the_number_of_multiprocessors(multiprocessors, choose_device):
    expected = attention(LENGTHS["short"], 3, 64)[0]
    choose_device(multiprocessors)
    for x, y in zip(expected, attention(LENGTHS["short"], 3, 64)[0], strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("head_dim", [24, 32, 64, 72, 128])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_shared_memory_has_no_bank_conflicts(lengths, head_dim):
    _, forward, backward = attention(lengths, 1, head_dim)
    assert forward
    assert backward
    for launch in forward + backward:
        assert launch["matrix_load_conflicts"] == 0, launch
        assert launch["shared_store_conflicts"] == 0, launch


def test_the_forward_of_short_sequences_reads_keys_and_values_once(choose_device):
    choose_device(1)  # with more, blocks without work share long sequences
    lengths, num_heads, head_dim = [49, 196, 7], 2, 64
    _, (launch,), _ = attention(lengths, num_heads, head_dim, weights="none")
    assert launch["copy_async_bytes"] == 2 * sum(lengths) * num_heads * head_dim * 2
    # Tiles of 16 by 16 keys for the scores, and as many for their product with the values.
    tiles = sum(-(-n // 16) * -(-n // 16) for n in lengths)
    assert launch["mma"] == 2 * tiles * num_heads * (head_dim // 16) * 2


@pytest.mark.parametrize("max_seqlen", [1, 49, 64, 65, 128, 197, 256, 257, 384, 385, 577, 1025, 8192])
@pytest.mark.parametrize("card", SHARED_MEMORY.values(), ids=SHARED_MEMORY.keys())
def test_blocks_fit_the_shared_memory_of_every_card(card, max_seqlen, choose_device):
    from msvit_kernels.cuda import varlen_attention as cuda_attention

    choose_device(shared_memory_bytes=card)
    # One token, but bounds and tensors that could hold more: what is asked for depends on the bound alone.
    offsets = testing.offsets([1, 0])
    for head_dim in (32, 64, 96, 128):
        q, k, v = testing.qkv_views(max_seqlen, 1, head_dim, torch.bfloat16)
        weight = torch.ones(max_seqlen)
        call = VarlenAttention(q, k, v, offsets, offsets, max_seqlen, max_seqlen, 0.1, weight)
        out, lse = cuda_attention.varlen_attention_fwd(call)
        gradients = cuda_attention.varlen_attention_bwd(VarlenAttentionBackward(call, out, lse, out, None, True))
        torch.testing.assert_close(out[0], v[0])
        torch.testing.assert_close(gradients[2][0], out[0])


# 2^22 keys of 128 elements are 2^31 bytes of keys and values, a size that 32 bits turn into one that fits.
@pytest.mark.parametrize("bound", [2**22 - 1, 2**22, 2**31 - 2**20])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_long_bounds_take_the_kernels_for_long_sequences(head_dim, bound):
    from msvit_kernels.cuda import varlen_attention as cuda_attention
    from msvit_kernels.cuda.native import kernels

    def call(bound, gradients):
        total = max(bound, 70)  # what the offsets are clamped to; there is memory for 70 tokens and offsets to those
        lse, delta, dweight = (torch.empty(70) for _ in range(3))
        out, dq, dk, dv = (torch.empty_like(q) for _ in range(4))
        attention = VarlenAttention(q, k, v, offsets, offsets, min(bound, 70), bound, 0.1, weight)
        inputs = {**attention_fields(attention), **cuda_attention._launch(attention)}
        inputs |= {"total_q": total, "total_k": total}
        inputs |= {"out": out.data_ptr(), "lse": lse.data_ptr()}
        kernels.varlen_attention_fwd(**inputs)
        if gradients:
            inputs |= {"dout": dout.data_ptr(), "dout_stride_token": dout.stride(0), "dout_stride_head": dout.stride(1)}
            results = {"dq": dq, "dk": dk, "dv": dv, "delta": delta, "dweight": dweight}
            kernels.varlen_attention_bwd(**inputs, dlse=0, **{name: x.data_ptr() for name, x in results.items()})
        return [out, lse, dq, dk, dv, dweight] if gradients else [out, lse]

    q, k, v = testing.qkv_views(70, 1, head_dim, torch.bfloat16)
    weight, dout = testing.key_weights("fractional", 70), torch.randn(70, 1, head_dim).bfloat16()
    offsets = testing.offsets([33, 0, 37])
    gradients = bound <= 2**22  # a grid for more keys takes the emulator long
    expected = call(70, gradients)
    take_statistics()
    actual = call(bound, gradients)
    forward = take_statistics()[0]
    assert forward["shared_bytes"] < 76 * 1024
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=2**-7, atol=2**-7)


def test_more_tokens_than_can_be_counted_are_refused():
    from msvit_kernels.cuda import varlen_attention as cuda_attention
    from msvit_kernels.cuda.native import kernels

    q, k, v = testing.qkv_views(1, 1, 32, torch.bfloat16)
    offsets = testing.offsets([1])
    attention = VarlenAttention(q, k, v, offsets, offsets, 1, 1, 0.1)
    inputs = {**attention_fields(attention), **cuda_attention._launch(attention)}
    for name in ("total_q", "total_k"):
        total = inputs | {name: 2**31 - 2**20 + 1}
        with pytest.raises(RuntimeError, match="more than 2\\^31 - 2\\^20 tokens"):
            kernels.varlen_attention_fwd(**total, out=0, lse=0)


def test_the_emulator_is_never_chosen_by_itself():
    for dtype in (torch.float32, torch.bfloat16):
        assert dispatch.resolve("varlen_attention", None, "cpu", dtype, head_dim=64) != "cuda"


@pytest.mark.skipif("-address" not in os.environ.get("MSVIT_CUDA_EMULATOR", ""), reason="needs AddressSanitizer")
@pytest.mark.parametrize("seed", range(20))
def test_wrong_offsets_touch_nothing_outside_of_the_tensors(seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, shape=()):
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int64)

    limit = [100, 2**31 - 1][seed % 2]
    total, batch = int(draw(1, 100)), int(draw(1, 6))
    offsets = [draw(-limit, limit, (batch + 1,)).int() for _ in range(2)]
    lengths = [int(draw(1, 600)) for _ in range(2)]
    q, k, v = (torch.randn(total, 2, 32).bfloat16() for _ in range(3))
    weight = testing.key_weights("fractional", total)
    functions = [dispatch.function("varlen_attention", "cuda", f"varlen_attention_{name}") for name in ("fwd", "bwd")]
    call = VarlenAttention(q, k, v, *offsets, *lengths, 0.2, weight)
    out, lse = functions[0](call)
    functions[1](VarlenAttentionBackward(call, out, lse, torch.randn_like(q), None, needs_dweight=True))


def test_a_build_without_fp16_kernels_refuses_fp16(monkeypatch):
    from msvit_kernels.cuda import varlen_attention as cuda_attention

    info = {**cuda_attention.kernels.build_info(), "fp16": False}
    monkeypatch.setattr(cuda_attention.kernels, "build_info", lambda: info)
    assert "without fp16 kernels" in cuda_attention.unsupported_reason("cpu", torch.float16, 64)
    assert cuda_attention.unsupported_reason("cpu", torch.bfloat16, 64) is None
