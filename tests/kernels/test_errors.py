"""Wrong calls of every public function of msvit_kernels: the error and its text, before any kernel runs."""

import dataclasses

import pytest
import torch

from msvit_kernels import mixed_scale_embed, mixed_scale_layout, testing, unpack_to_grid, varlen_attention

MEAN, STD = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)


def rand(*shape, dtype=torch.float32):
    return torch.rand(*shape).to(dtype)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


BACKENDS = {
    "unknown_backend": ({"backend": "gpu"}, ValueError, "backend: expected one of"),
    "backend_a_number": ({"backend": 3}, TypeError, "backend: expected a string or None, got int"),
    "backend_bytes": ({"backend": b"cpu"}, TypeError, "backend: expected a string or None, got bytes"),
}


ATTENTION = {
    "q_not_a_tensor": ({"q": [1.0]}, TypeError, "q: expected a tensor, got list"),
    "q_two_axes": ({"q": rand(5, 32)}, ValueError, r"q: expected 3 axes, got 2 \(shape \(5, 32\)\)"),
    "q_sparse": ({"q": rand(5, 2, 16).to_sparse()}, TypeError, "q: expected a strided tensor"),
    "q_int": ({"q": torch.ones(5, 2, 16, dtype=torch.int32)}, TypeError, "q: expected dtype float32.*got int32"),
    "k_other_dtype": (
        {"k": rand(5, 2, 16, dtype=torch.bfloat16)},
        TypeError,
        "k: expected dtype float32, got bfloat16",
    ),
    "v_other_device": ({"v": torch.empty(5, 2, 16, device="meta")}, ValueError, "v: expected device cpu, got meta"),
    "k_other_heads": ({"k": rand(5, 3, 16)}, ValueError, r"k: expected shape \(5, 2, 16\), got \(5, 3, 16\)"),
    "v_other_tokens": ({"v": rand(6, 2, 16)}, ValueError, r"v: expected shape \(5, 2, 16\), got \(6, 2, 16\)"),
    "k_other_tokens": (
        {"k": rand(6, 2, 16), "v": rand(6, 2, 16)},
        ValueError,
        "k: expected 5 tokens as in q without cu_seqlens_k, got 6",
    ),
    "head_dim_8": ({n: rand(5, 2, 8) for n in "qkv"}, ValueError, "q: expected a head_dim.*from 16 to 128, got 8"),
    "head_dim_20": ({n: rand(5, 2, 20) for n in "qkv"}, ValueError, "q: expected a head_dim.*multiple of 8.*got 20"),
    "head_dim_136": ({n: rand(5, 2, 136) for n in "qkv"}, ValueError, "q: expected a head_dim.*got 136"),
    "no_heads": ({n: rand(5, 0, 16) for n in "qkv"}, ValueError, "q: expected at least one head, got none"),
    "last_axis_strided": ({"q": rand(5, 2, 32)[..., ::2]}, ValueError, "q: expected a contiguous last axis.*stride 2"),
    "offsets_a_list": ({"cu_seqlens": [0, 2, 5]}, TypeError, "cu_seqlens: expected a tensor, got list"),
    "offsets_int64": (
        {"cu_seqlens": torch.tensor([0, 2, 5])},
        TypeError,
        "cu_seqlens: expected dtype int32, got int64",
    ),
    "offsets_two_axes": ({"cu_seqlens": int32(0, 5)[None]}, ValueError, "cu_seqlens: expected 1 axes, got 2"),
    "offsets_empty": ({"cu_seqlens": int32()}, ValueError, r"cu_seqlens: expected shape \[batch \+ 1\], got \[0\]"),
    "offsets_strided": ({"cu_seqlens": int32(0, 9, 2, 9, 5, 9)[::2]}, ValueError, "cu_seqlens: expected a contiguous"),
    "offsets_start": ({"cu_seqlens": int32(1, 2, 5)}, ValueError, "cu_seqlens: expected to start at 0, got 1"),
    "offsets_fall": ({"cu_seqlens": int32(0, 7, 5)}, ValueError, "cu_seqlens: expected offsets that never decrease"),
    "offsets_short": ({"cu_seqlens": int32(0, 2, 4)}, ValueError, "cu_seqlens: expected to end at.*5, got 4"),
    "offsets_long": ({"cu_seqlens": int32(0, 2, 6)}, ValueError, "cu_seqlens: expected to end at.*5, got 6"),
    "max_seqlen_small": (
        {"max_seqlen": 2},
        ValueError,
        r"max_seqlen: expected at least 3 \(the longest sequence\), got 2",
    ),
    "max_seqlen_negative": ({"max_seqlen": -1}, ValueError, "max_seqlen: expected at least 0, got -1"),
    "max_seqlen_huge": ({"max_seqlen": 2**63}, ValueError, r"max_seqlen: expected at most 2\*\*63 - 1, got 9223"),
    "max_seqlen_tensor": ({"max_seqlen": torch.tensor(3)}, TypeError, "max_seqlen: expected an int, got Tensor"),
    "max_seqlen_bool": ({"max_seqlen": True}, TypeError, "max_seqlen: expected an int, got bool"),
    "max_seqlen_k_alone": ({"max_seqlen_k": 3}, ValueError, "max_seqlen_k: expected None without cu_seqlens_k"),
    "cu_seqlens_k_alone": (
        {"cu_seqlens_k": int32(0, 2, 5)},
        ValueError,
        "max_seqlen_k: expected an int with cu_seqlens_k",
    ),
    "cu_seqlens_k_other_batch": (
        {"cu_seqlens_k": int32(0, 5), "max_seqlen_k": 5},
        ValueError,
        r"cu_seqlens_k: expected shape \(3,\), got \(2,\)",
    ),
    "cu_seqlens_k_falls": (
        {"cu_seqlens_k": int32(0, 6, 5), "max_seqlen_k": 6},
        ValueError,
        "cu_seqlens_k: expected offsets that never decrease",
    ),
    "weight_half": (
        {"key_weight": rand(5, dtype=torch.float16)},
        TypeError,
        "key_weight: expected dtype float32, got float16",
    ),
    "weight_short": ({"key_weight": rand(4)}, ValueError, r"key_weight: expected shape \(5,\), got \(4,\)"),
    "weight_negative": (
        {"key_weight": torch.tensor([1.0, 1, -1, 1, 1])},
        ValueError,
        "key_weight: expected finite numbers >= 0",
    ),
    "weight_nan": ({"key_weight": torch.full((5,), torch.nan)}, ValueError, "key_weight: expected finite numbers >= 0"),
    "weight_infinite": (
        {"key_weight": torch.full((5,), torch.inf)},
        ValueError,
        "key_weight: expected finite numbers >= 0",
    ),
    "scale_a_string": ({"softmax_scale": "1"}, TypeError, "softmax_scale: expected a float, got str"),
    "scale_nan": ({"softmax_scale": float("nan")}, ValueError, "softmax_scale: expected a finite number, got nan"),
    "scale_beyond_float32": (
        {"softmax_scale": -1e39},
        ValueError,
        r"softmax_scale: expected a finite number in float32, got -1e\+39",
    ),
    # log2(e) times this one is infinite in float32.
    "scale_at_the_limit": (
        {"softmax_scale": 3e38},
        ValueError,
        "softmax_scale: expected a magnitude of at most 2",
    ),
    "scale_huge_int": ({"softmax_scale": 10**400}, ValueError, "softmax_scale: expected a finite number in float32"),
    **BACKENDS,
}


@pytest.mark.parametrize(("change", "error", "words"), ATTENTION.values(), ids=ATTENTION.keys())
def test_varlen_attention(change, error, words):
    arguments = {name: rand(5, 2, 16) for name in "qkv"} | {"cu_seqlens": int32(0, 2, 5), "max_seqlen": 3}
    varlen_attention(**arguments)
    with pytest.raises(error, match=words):
        varlen_attention(**arguments | change)


MASK = torch.zeros(2, 3, 4, dtype=torch.bool)
LAYOUT = {
    "mask_a_list": ({"fine_mask": [[True]]}, TypeError, "fine_mask: expected a tensor, got list"),
    "mask_float": ({"fine_mask": MASK.float()}, TypeError, "fine_mask: expected dtype bool, got float32"),
    "mask_two_axes": ({"fine_mask": MASK[0]}, ValueError, "fine_mask: expected 3 axes, got 2"),
    "mask_no_regions": ({"fine_mask": MASK[:, :0]}, ValueError, "fine_mask: expected at least one region"),
    "scale_one": ({"scale_factor": 1}, ValueError, "scale_factor: expected at least 2, got 1"),
    "scale_float": ({"scale_factor": 2.0}, TypeError, "scale_factor: expected an int, got float"),
    "prefix_negative": ({"num_prefix": -1}, ValueError, "num_prefix: expected at least 0, got -1"),
    "prefix_huge": ({"num_prefix": 2**31}, ValueError, "fine_mask: expected at most 2147483647 tokens"),
    "scale_huge": ({"scale_factor": 2**63}, ValueError, r"scale_factor: expected at most 2\*\*63 - 1"),
    "total_huge": ({"total_tokens": 2**63}, ValueError, r"total_tokens: expected at most 2\*\*63 - 1"),
    "total_negative": ({"total_tokens": -1}, ValueError, "total_tokens: expected at least 0, got -1"),
    "total_float": ({"total_tokens": 26.0}, TypeError, "total_tokens: expected an int, got float"),
    "total_wrong": ({"total_tokens": 27}, ValueError, "total_tokens: expected 26 for this fine_mask, got 27"),
    **BACKENDS,
}


@pytest.mark.parametrize(("change", "error", "words"), LAYOUT.values(), ids=LAYOUT.keys())
def test_mixed_scale_layout(change, error, words):
    assert mixed_scale_layout(MASK, total_tokens=26).total_tokens == 26
    with pytest.raises(error, match=words):
        mixed_scale_layout(**{"fine_mask": MASK} | change)


def wrong_layout(**fields):
    return dataclasses.replace(mixed_scale_layout(MASK), **fields)


WRONG_LAYOUTS = {
    "a_mask": (lambda: MASK, TypeError, "layout: expected a MixedScaleLayout, got Tensor"),
    "scale_factor": (
        lambda: wrong_layout(scale_factor=0),
        ValueError,
        "layout.scale_factor: expected at least 2, got 0",
    ),
    "scale_factor_3": (lambda: wrong_layout(scale_factor=3), ValueError, r"layout.grid_size: expected \(9, 12\)"),
    "no_rows": (
        lambda: wrong_layout(batch_index=int32()),
        ValueError,
        r"layout.batch_index: expected int32 \[26\] on cpu, contiguous, got int32 \[0\]",
    ),
    "no_regions": (
        lambda: wrong_layout(region_start=torch.zeros(0, 12, dtype=torch.int32)),
        ValueError,
        r"layout.region_start: expected int32 \[2, 12\] on cpu, contiguous, got int32 \[0, 12\]",
    ),
    "token_index_int64": (
        lambda: wrong_layout(token_index=mixed_scale_layout(MASK).token_index.long()),
        TypeError,
        r"layout.token_index: expected int32 \[26\] on cpu, contiguous, got int64 \[26\]",
    ),
    "mask_of_another_shape": (lambda: wrong_layout(fine_mask=MASK.mT), ValueError, "layout.fine_mask: expected bool"),
    "mask_of_another_layout": (lambda: wrong_layout(fine_mask=~MASK), ValueError, "total_tokens: expected 9.*got 26"),
    "num_tokens": (
        lambda: wrong_layout(num_tokens=int32(12, 14)),
        ValueError,
        "layout.num_tokens: expected 13 at index 0 for this cu_seqlens, got 12",
    ),
}


@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize(("make", "error", "words"), WRONG_LAYOUTS.values(), ids=WRONG_LAYOUTS.keys())
def test_layout(make, error, words, native, monkeypatch):
    from msvit_kernels import validation

    if not native:
        monkeypatch.setattr(validation, "_native", None)
    images, *parameters = rand(2, 3, 24, 32), rand(6, 3, 4, 4), rand(6), rand(61, 6)
    unpack_to_grid(rand(26, 6), mixed_scale_layout(MASK))
    with pytest.raises(error, match=words):
        mixed_scale_embed(images, make(), *parameters, patch_size=4)
    with pytest.raises(error, match=words):
        unpack_to_grid(rand(26, 6), make())


EMBED = {
    "images_a_list": ({"images": [1]}, TypeError, "images: expected a tensor, got list"),
    "images_three_axes": ({"images": rand(3, 24, 32)}, ValueError, "images: expected 4 axes, got 3"),
    "images_int": ({"images": torch.ones(2, 3, 24, 32, dtype=torch.int64)}, TypeError, "images: expected dtype uint8"),
    "images_one_channel": ({"images": rand(2, 1, 24, 32)}, ValueError, r"images: expected shape \(2, 3, 24, 32\)"),
    "images_other_size": ({"images": rand(2, 3, 24, 31)}, ValueError, r"images: expected shape \(2, 3, 24, 32\)"),
    "images_other_batch": ({"images": rand(1, 3, 24, 32)}, ValueError, r"images: expected shape \(2, 3, 24, 32\)"),
    "layout_a_mask": ({"layout": MASK}, TypeError, "layout: expected a MixedScaleLayout, got Tensor"),
    "layout_other_device": (
        {"layout": wrong_layout(fine_mask=MASK.to("meta"))},
        ValueError,
        "layout.fine_mask: expected bool .* on cpu, contiguous, got bool .* on meta",
    ),
    "layout_image_out_of_range": (
        {"layout": wrong_layout(batch_index=torch.full((26,), 2, dtype=torch.int32))},
        ValueError,
        "layout.batch_index: expected 0 at index 0 for this fine_mask, got 2",
    ),
    "layout_token_negative": (
        {"layout": wrong_layout(token_index=torch.full((26,), -1, dtype=torch.int32))},
        ValueError,
        "layout.token_index: expected 0 at index 0 for this fine_mask, got -1",
    ),
    "weight_other_patch": ({"weight": rand(6, 3, 5, 5)}, ValueError, r"weight: expected shape \(6, 3, 4, 4\)"),
    "weight_int": ({"weight": torch.ones(6, 3, 4, 4, dtype=torch.int8)}, TypeError, "weight: expected dtype float32"),
    "bias_other_dim": ({"bias": rand(5)}, ValueError, r"bias: expected shape \(6,\), got \(5,\)"),
    "bias_other_dtype": (
        {"bias": rand(6, dtype=torch.bfloat16)},
        TypeError,
        "bias: expected dtype float32, got bfloat16",
    ),
    "table_short": ({"table": rand(60, 6)}, ValueError, r"table: expected shape \(61, 6\), got \(60, 6\)"),
    "table_other_dtype": ({"table": rand(61, 6, dtype=torch.float64)}, TypeError, "table: expected dtype float32"),
    "patch_size_zero": ({"patch_size": 0}, ValueError, "patch_size: expected at least 1, got 0"),
    "patch_size_float": ({"patch_size": 4.0}, TypeError, "patch_size: expected an int, got float"),
    "uint8_unnormalised": (
        {"images": torch.zeros(2, 3, 24, 32, dtype=torch.uint8)},
        ValueError,
        "mean, std: required for uint8 images, got None",
    ),
    "mean_alone": ({"mean": MEAN}, ValueError, "mean, std: expected both or neither, got one"),
    "mean_two_numbers": ({"mean": (0.5, 0.5), "std": STD}, ValueError, "mean: expected 3 numbers, got 2"),
    "mean_a_number": ({"mean": 0.5, "std": STD}, TypeError, "mean: expected a sequence of 3 floats, got float"),
    "mean_tensor_short": ({"mean": rand(2), "std": STD}, ValueError, r"mean: expected shape \(3,\), got \(2,\)"),
    "mean_int_tensor": ({"mean": int32(1, 2, 3), "std": STD}, TypeError, "mean: expected a tensor of a floating-point"),
    "mean_needs_gradient": (
        {"mean": torch.zeros(3, requires_grad=True), "std": STD},
        ValueError,
        "mean: expected a tensor without requires_grad",
    ),
    "mean_beyond_float32": (
        {"mean": (0, 1e39, 0), "std": STD},
        ValueError,
        "mean: expected a finite number in float32",
    ),
    "std_tensor_zero": ({"mean": MEAN, "std": torch.zeros(3)}, ValueError, "std: expected numbers above zero"),
    "std_zero": ({"mean": MEAN, "std": (0.2, 0.0, 0.2)}, ValueError, "std: expected numbers above zero"),
    "std_nan": ({"mean": MEAN, "std": (0.2, float("nan"), 0.2)}, ValueError, "std: expected a finite number, got nan"),
    **BACKENDS,
}


@pytest.mark.parametrize(("change", "error", "words"), EMBED.values(), ids=EMBED.keys())
def test_mixed_scale_embed(change, error, words):
    arguments = {
        "images": rand(2, 3, 24, 32),
        "layout": mixed_scale_layout(MASK),
        "weight": rand(6, 3, 4, 4),
        "bias": rand(6),
        "table": rand(61, 6),
        "patch_size": 4,
    }
    mixed_scale_embed(**arguments)
    with pytest.raises(error, match=words):
        mixed_scale_embed(**arguments | change)


UNPACK = {
    "tokens_a_list": ({"tokens": [1]}, TypeError, "tokens: expected a tensor, got list"),
    "tokens_three_axes": ({"tokens": rand(26, 1, 6)}, ValueError, "tokens: expected 2 axes, got 3"),
    "tokens_int": ({"tokens": torch.ones(26, 6, dtype=torch.int32)}, TypeError, "tokens: expected dtype float32"),
    "tokens_short": ({"tokens": rand(25, 6)}, ValueError, r"tokens: expected shape \(26, 6\), got \(25, 6\)"),
    "tokens_no_dim": ({"tokens": rand(26, 0)}, ValueError, "tokens: expected dim of at least 1, got 0"),
    "tokens_strided": ({"tokens": rand(26, 12)[:, ::2]}, ValueError, "tokens: expected a contiguous last axis"),
    "layout_a_mask": ({"layout": MASK}, TypeError, "layout: expected a MixedScaleLayout, got Tensor"),
    "layout_rows_out_of_range": (
        {"layout": wrong_layout(region_start=torch.full((2, 12), 26, dtype=torch.int32))},
        ValueError,
        "layout.region_start: expected .* at index 0, 0 for this fine_mask, got 26",
    ),
    **BACKENDS,
}


@pytest.mark.parametrize(("change", "error", "words"), UNPACK.values(), ids=UNPACK.keys())
def test_unpack_to_grid(change, error, words):
    arguments = {"tokens": rand(26, 6), "layout": mixed_scale_layout(MASK)}
    unpack_to_grid(**arguments)
    with pytest.raises(error, match=words):
        unpack_to_grid(**arguments | change)


def test_contents_are_checked_on_any_device_when_asked(monkeypatch):
    from msvit_kernels import validation

    meta = torch.empty(1, device="meta")
    monkeypatch.delenv("MSVIT_CHECK", raising=False)
    assert not validation.checks_contents(meta)
    monkeypatch.setenv("MSVIT_CHECK", "1")
    assert validation.checks_contents(meta)


def test_assert_accurate_refuses_what_is_wrong():
    oracle = torch.linspace(-1, 1, 9, dtype=torch.float64)
    eager = oracle.float()
    testing.assert_accurate("x", eager.clone(), eager, oracle)
    wrong = {
        "error .* above": eager + 1e-5,
        "has NaN": eager * torch.nan,
        "dtype": eager.bfloat16(),
        "shape": eager[:3],
    }
    for words, actual in wrong.items():
        with pytest.raises(AssertionError, match=words):
            testing.assert_accurate("x", actual, eager, oracle)
