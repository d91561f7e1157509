"""Random calls, right and wrong: each returns right numbers or raises a clear error, and none crashes.

Inputs lie between guards of NaN, so reads outside them show in the result; the AddressSanitizer run of CI finds other
stray accesses. MSVIT_FUZZ_CASES sets another number of cases.
"""

import dataclasses
import os
import random

import pytest
import torch

from msvit_kernels import calls, mixed_scale_embed, mixed_scale_layout, testing, unpack_to_grid, varlen_attention
from msvit_kernels.ops.arguments import flattener
from tests.kernels.malformed import faulty

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


MASK = torch.tensor([[[True, False, True], [True, False, False]], [[False, True, False], [True, True, True]]])
LAYOUT = mixed_scale_layout(MASK)
TOTAL = LAYOUT.total_tokens
MEAN, STD = [0.5, 0.4, 0.6], [0.2, 0.3, 0.25]


def rand(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def embed(layout, backend):
    leaves = [x.requires_grad_() for x in (rand(2, 3, 16, 24), rand(6, 3, 4, 4), rand(6), rand(31, 6))]
    images, *parameters = leaves
    out = mixed_scale_embed(images, layout, *parameters, patch_size=4, mean=MEAN, std=STD, backend=backend)
    return out, *torch.autograd.grad(out, leaves, rand(*out.shape))


def unpack(layout, backend):
    tokens = rand(TOTAL, 6).requires_grad_()
    grid = unpack_to_grid(tokens, layout, backend=backend)
    return grid, *torch.autograd.grad(grid, tokens, rand(*grid.shape))


def keep(layout, backend):
    rows, packing = layout.keep(rand(TOTAL) < 0.5)
    return rows, packing.cu_seqlens, packing.batch_index, layout.is_prefix()


def assert_same(actual, expected, case):
    actual, expected = ((x,) if isinstance(x, torch.Tensor) else x for x in (actual, expected))
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4, msg=lambda text: f"{case}: {text}")


@pytest.mark.parametrize("use", [embed, unpack, keep])
@pytest.mark.parametrize(("backend", "cases"), [("cpu", 120), ("reference", 60), ("triton", 10)])
def test_malformed_layouts(use, backend, cases):
    if backend not in testing.backends_for("unpack_to_grid", "cpu", torch.float32):
        pytest.skip(f"the backend {backend} does not run here")
    random.seed(3)
    fields = [field.name for field in dataclasses.fields(LAYOUT)]
    expected, refused = use(LAYOUT, backend), []
    for case in range(cases):
        changes = {name: faulty(getattr(LAYOUT, name)) for name in random.sample(fields, random.choice([1, 1, 2]))}
        try:
            actual = use(dataclasses.replace(LAYOUT, **changes), backend)
        except CLEAR_ERRORS as error:
            refused.append(str(error))
            continue
        assert_same(actual, expected, f"case {case}: {changes}")
    assert len(refused) > cases / 2
    assert all(": expected " in message for message in refused), refused


def operator_calls():
    """Name and call of each operator, with all optional arguments."""
    patches = calls.Patches(
        images=rand(2, 3, 16, 24),
        regions=LAYOUT.regions,
        cu_seqlens=LAYOUT.cu_seqlens,
        batch_index=LAYOUT.batch_index,
        token_index=LAYOUT.token_index,
        num_prefix=1,
        weight=rand(6, 3, 4, 4),
        patch_size=4,
        mean=MEAN,
        std=STD,
    )
    q, k, v, dout = (rand(TOTAL, 2, 16) for _ in range(4))
    offsets = LAYOUT.cu_seqlens
    attention = calls.VarlenAttention(q, k, v, offsets, offsets.clone(), 25, 25, 0.25, rand(TOTAL))
    out, lse = torch.ops.msvit.varlen_attention(*flattener(type(attention))(attention, "reference"))
    yield "mixed_scale_layout_offsets", calls.MixedScaleLayoutOffsets(MASK, 2, 1)
    yield "mixed_scale_layout", calls.MixedScaleLayoutIndices(LAYOUT.regions, offsets, TOTAL, 1)
    yield "mixed_scale_embed", calls.MixedScaleEmbed(patches, rand(31, 6), rand(6))
    yield "mixed_scale_embed_bwd", calls.MixedScaleEmbedBackward(patches, rand(TOTAL, 6), True, True, True, True)
    yield "unpack_to_grid", calls.UnpackToGrid(rand(TOTAL, 6), LAYOUT.regions)
    yield "unpack_to_grid_bwd", calls.UnpackToGridBackward(rand(2, 6, 4, 6), LAYOUT.regions, TOTAL)
    yield "varlen_attention", attention
    yield "varlen_attention_bwd", calls.VarlenAttentionBackward(attention, out, lse, dout, torch.ones_like(lse), True)


@pytest.mark.parametrize(("name", "call"), [pytest.param(*each, id=each[0]) for each in operator_calls()])
def test_malformed_operator_calls(name, call):
    random.seed(4)
    operator, refused = getattr(torch.ops.msvit, name), 0
    for case in range(120):
        arguments = list(flattener(type(call))(call, None))
        for at in random.sample(range(len(arguments)), random.choice([1, 1, 2])):
            arguments[at] = faulty(arguments[at])
        arguments[-1] = "cpu" if arguments[-1] is None else arguments[-1]
        try:
            actual = operator(*arguments)
        except CLEAR_ERRORS:
            refused += 1
            continue
        except RuntimeError as error:  # of torch's dispatcher, which compares the types with the schema
            if "Expected a value of type" not in str(error):
                raise
            continue
        plain = [x.contiguous() if isinstance(x, torch.Tensor) else x for x in arguments[:-1]]
        assert_same(actual, operator(*plain, "reference"), f"case {case}")
    assert refused > 40
