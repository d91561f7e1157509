"""`Packing`: offsets of packed rows, and removal of rows, against loops over the rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msvit_kernels import Packing, mixed_scale_layout
from msvit_kernels.testing import DEVICES

# Images of 0 tokens are legal without prefix tokens.
CASES = [
    pytest.param([3, 1, 4], 0, id="no-prefix"),
    pytest.param([3, 1, 4], 1, id="prefix"),
    pytest.param([0, 2, 0, 0, 5, 0], 0, id="empty-sequences"),
    pytest.param([5], 2, id="batch-1"),
    pytest.param([2, 2], 2, id="prefix-only"),
    pytest.param([0, 0], 0, id="no-rows"),
    pytest.param([], 1, id="batch-0"),
]


def packing_of(lengths: list[int], num_prefix: int, device: str = "cpu") -> Packing:
    offsets = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    cu_seqlens = torch.tensor(offsets, dtype=torch.int32, device=device)
    return Packing.from_offsets(cu_seqlens, max(lengths, default=0), offsets[-1], num_prefix)


def rows_by_hand(lengths: list[int], num_prefix: int) -> list[tuple[int, bool]]:
    """(image, whether it is a prefix token) of each row."""
    return [(b, i < num_prefix) for b, length in enumerate(lengths) for i in range(length)]


def check_keep(lengths: list[int], num_prefix: int, mask: list[bool], device: str, give_total: bool) -> None:
    """Compares the remaining rows, offsets and images with a loop."""
    by_hand = rows_by_hand(lengths, num_prefix)
    stays = [i for i, (_, prefix) in enumerate(by_hand) if prefix or mask[i]]
    packing = packing_of(lengths, num_prefix, device)
    given = torch.tensor(mask, dtype=torch.bool, device=device)
    rows, kept = packing.keep(given, len(stays) if give_total else None)
    assert rows.tolist() == stays
    assert rows.dtype == torch.int64
    images = [by_hand[i][0] for i in stays]
    assert kept.batch_index.tolist() == images
    assert kept.cu_seqlens.diff().tolist() == [images.count(b) for b in range(len(lengths))]
    assert kept.cu_seqlens.tolist()[0] == 0
    assert kept.is_prefix().tolist() == [by_hand[i][1] for i in stays]
    assert (kept.total_tokens, kept.max_seqlen, kept.num_prefix) == (len(stays), packing.max_seqlen, num_prefix)
    assert (kept.batch, type(kept)) == (len(lengths), Packing)
    for x in (kept.cu_seqlens, kept.batch_index):
        assert (x.dtype, x.device.type, x.is_contiguous()) == (torch.int32, device, True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("lengths", "num_prefix"), CASES)
def test_from_offsets(lengths: list[int], num_prefix: int, device: str) -> None:
    packing = packing_of(lengths, num_prefix, device)
    by_hand = rows_by_hand(lengths, num_prefix)
    assert packing.batch_index.tolist() == [image for image, _ in by_hand]
    assert packing.batch_index.dtype == torch.int32
    assert packing.is_prefix().tolist() == [prefix for _, prefix in by_hand]
    assert packing.is_prefix().dtype == torch.bool
    assert (packing.total_tokens, packing.batch) == (sum(lengths), len(lengths))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("give_total", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("stays", [True, False], ids=["all", "none"])
@pytest.mark.parametrize(("lengths", "num_prefix"), CASES)
def test_keep_all_and_none(lengths: list[int], num_prefix: int, stays: bool, give_total: bool, device: str) -> None:
    check_keep(lengths, num_prefix, [stays] * sum(lengths), device, give_total)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2), st.lists(st.integers(0, 6), max_size=5), st.booleans(), st.data())
def test_keep_equals_a_loop(num_prefix: int, patches: list[int], give_total: bool, data: st.DataObject) -> None:
    lengths = [num_prefix + count for count in patches]
    mask = data.draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths)))
    check_keep(lengths, num_prefix, mask, "cpu", give_total)


@pytest.mark.parametrize("num_prefix", [0, 2])
def test_layout_is_a_packing(num_prefix: int) -> None:
    """The faster methods of a layout agree with its offsets; the result of `keep` is a plain packing."""
    fine_mask = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    layout = mixed_scale_layout(fine_mask, num_prefix=num_prefix)
    packing = Packing.from_offsets(layout.cu_seqlens, layout.max_seqlen, layout.total_tokens, num_prefix)
    assert torch.equal(layout.is_prefix(), packing.is_prefix())
    assert torch.equal(layout.batch_index, packing.batch_index)
    mask = torch.arange(layout.total_tokens) % 2 == 0
    (rows, kept), (expected_rows, expected) = layout.keep(mask), packing.keep(mask)
    assert torch.equal(rows, expected_rows)
    assert torch.equal(kept.cu_seqlens, expected.cu_seqlens)
    assert type(kept) is Packing


def test_compiles_whole_with_a_known_total() -> None:
    def offsets(cu_seqlens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, kept = Packing.from_offsets(cu_seqlens, 4, 8, 1).keep(mask, 5)
        return rows, kept.cu_seqlens, kept.batch_index, kept.is_prefix()

    cu_seqlens = torch.tensor([0, 3, 4, 8], dtype=torch.int32)
    mask = torch.tensor([0, 1, 0, 0, 0, 1, 0, 0], dtype=torch.bool)
    compiled = torch.compile(offsets, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(cu_seqlens, mask), offsets(cu_seqlens, mask))


OFFSETS = torch.tensor([0, 3, 8], dtype=torch.int32)
WRONG_OFFSETS = [
    pytest.param((OFFSETS.tolist(), 5, 8), TypeError, "cu_seqlens: expected a tensor, got list", id="type"),
    pytest.param((OFFSETS.long(), 5, 8), TypeError, "cu_seqlens: expected dtype int32, got int64", id="dtype"),
    pytest.param((OFFSETS[None], 5, 8), ValueError, "cu_seqlens: expected", id="ndim"),
    pytest.param((OFFSETS.flip(0), 5, 8), ValueError, "cu_seqlens: ", id="order"),
    pytest.param((OFFSETS, 5, 9), ValueError, "cu_seqlens: ", id="total"),
    pytest.param((OFFSETS, 4, 8), ValueError, "max_seqlen: |cu_seqlens: ", id="bound"),
    pytest.param((OFFSETS, 5.0, 8), TypeError, "max_seqlen: expected an int", id="bound-type"),
    pytest.param((OFFSETS, 5, 8, -1), ValueError, "num_prefix: expected", id="prefix"),
    pytest.param((OFFSETS, 5, 8, 4), ValueError, "num_prefix: expected at most 3 .*, got 4", id="prefix-rows"),
    pytest.param((OFFSETS, 5, True), TypeError, "total_tokens: expected an int", id="total-type"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), WRONG_OFFSETS)
def test_wrong_offsets(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Packing.from_offsets(*arguments)


WRONG_MASKS = [
    pytest.param(([True] * 8,), TypeError, "mask: expected a tensor, got list", id="type"),
    pytest.param((torch.ones(8),), TypeError, "mask: expected dtype bool", id="dtype"),
    pytest.param(
        (torch.ones(7, dtype=torch.bool),), ValueError, r"mask: expected shape \(8,\), got \(7,\)", id="shape"
    ),
    pytest.param((torch.ones(8, dtype=torch.bool, device="meta"),), ValueError, "mask: expected device", id="device"),
    pytest.param((torch.ones(8, dtype=torch.bool), -1), ValueError, "total_tokens: expected", id="negative"),
    pytest.param((torch.ones(8, dtype=torch.bool), 7), ValueError, "total_tokens: .* tokens 7, got 8", id="total"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), WRONG_MASKS)
def test_wrong_mask(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Packing.from_offsets(OFFSETS, 5, 8).keep(*arguments)
