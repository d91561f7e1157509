"""Ten thousand random calls, right and wrong: each returns finite numbers or raises a clear error, and none crashes.

Inputs lie between guards of NaN, so reads outside them show in the result; the AddressSanitizer run of CI finds other
stray accesses. MSVIT_FUZZ_CASES sets another number of cases.
"""

import os
import random

import pytest
import torch

from msvit_kernels import mixed_scale_layout, testing, varlen_attention

CASES = int(os.environ.get("MSVIT_FUZZ_CASES", "10000"))
CLEAR_ERRORS = (ValueError, TypeError, NotImplementedError)
GUARD = 64
# The native one; named, because what it refuses (fp16) would else be interpreted by Triton, slowly.
BACKEND = testing.backends_for("varlen_attention", "cpu", torch.float32, head_dim=64)[0]


def guarded(*shape, dtype):
    """Random values between guards of NaN; in half of the cases the stride of rows exceeds their length."""
    *rows, last = shape
    gap = random.choice([0, 0, 8, 3])
    count = int(torch.Size(rows).numel()) * (last + gap)
    buffer = torch.full((count + 2 * GUARD,), torch.nan, dtype=dtype)
    view = buffer[GUARD : GUARD + count].view(*rows, last + gap)[..., :last]
    return view.copy_(torch.randn(shape))


def random_offsets(total, batch):
    """Offsets of `batch` sequences of `total` tokens; a tenth of the cases are invalid."""
    cuts = sorted(random.randint(0, total) for _ in range(batch - 1))
    values = [0, *cuts, total]
    if random.random() < 0.1:
        values[random.randrange(len(values))] = random.choice([-5, total + 1, 2**31 - 1, -(2**31), 3])
    return torch.tensor(values, dtype=torch.int32)


def random_attention_call():
    total = random.choice([0, 1, 2, 15, 16, 17, 33, 49, 70])
    heads = random.choice([1, 2, 3])
    head_dim = random.choice([16, 24, 32, 40, 64, 72, 128, 8, 20])
    dtype = random.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16])
    batch = random.randint(1, 5)
    q, k, v = (guarded(total, heads, head_dim, dtype=dtype) for _ in range(3))
    arguments = {"key_weight": random.choice([None, "zeros", "binary", "fractional"])}
    if arguments["key_weight"] is not None:
        weight = testing.key_weights(arguments["key_weight"], total)
        arguments["key_weight"] = weight if random.random() < 0.95 else weight - 0.5
    if random.random() < 0.2:
        total_k = random.choice([0, 3, 40])
        k, v = (guarded(total_k, heads, head_dim, dtype=dtype) for _ in range(2))
        arguments["cu_seqlens_k"] = random_offsets(total_k, batch)
        arguments["max_seqlen_k"] = random.choice([total_k, total_k, 1])
        if arguments["key_weight"] is not None:
            arguments["key_weight"] = testing.key_weights("binary", total_k)
    max_seqlen = random.choice([total, total, total, total + 100, 7, 0])
    return (q, k, v, random_offsets(total, batch), max_seqlen), arguments


@pytest.mark.timeout(600)
def test_varlen_attention():
    random.seed(1)
    returned = refused = 0
    for case in range(CASES):
        call, arguments = random_attention_call()
        backward = case % 4 == 0
        leaves = [x.requires_grad_() for x in call[:3]] if backward else call[:3]
        try:
            out = varlen_attention(*leaves, *call[3:], **arguments, backend=BACKEND)
        except CLEAR_ERRORS:
            refused += 1
            continue
        returned += 1
        assert out.isfinite().all(), f"case {case}: read outside the inputs or divided by zero"
        if backward:
            gradients = torch.autograd.grad(out.sum(), leaves)
            assert all(g.isfinite().all() for g in gradients), f"case {case}: gradient not finite"
        if case % 50 == 0 and call[0].dtype == torch.float32:
            expected = varlen_attention(*call, **arguments, backend="reference")
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    # Both kinds must be common, or the test would say little.
    assert returned > CASES / 4, returned
    assert refused > CASES / 20, refused


@pytest.mark.timeout(600)
def test_mixed_scale_layout():
    random.seed(2)
    returned = refused = 0
    for case in range(CASES):
        batch, height, width = (random.randint(0, high) for high in (4, 6, 6))
        mask = torch.rand(batch, height, width) < random.choice([0.0, 0.3, 1.0])
        scale_factor, num_prefix = random.choice([2, 2, 3, 4, 1, 0, -1]), random.choice([0, 1, 5, -1, 2**31])
        regions = height * width
        right = batch * (num_prefix + regions) + int(mask.sum()) * (scale_factor**2 - 1)
        total = random.choice([None, right, right, right + 1, right - 1, 0, -3, 2**31])
        try:
            layout = mixed_scale_layout(
                mask, scale_factor=scale_factor, num_prefix=num_prefix, total_tokens=total, backend=BACKEND
            )
        except CLEAR_ERRORS:
            refused += 1
            continue
        returned += 1
        assert layout.total_tokens == right, case
        if right:
            assert int(layout.token_index.min()) >= 0, case
            assert int(layout.token_index.max()) < layout.num_candidates, case
            assert torch.equal(layout.batch_index.bincount(minlength=batch), layout.num_tokens.long()), case
    assert returned > CASES / 20, returned
    assert refused > CASES / 4, refused
