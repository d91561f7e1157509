"""`mixed_scale_layout` of every backend against a layout built token by token in Python."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msvit_kernels import MixedScaleLayout, calls, mixed_scale_layout, testing
from msvit_kernels.ops.arguments import flattener
from msvit_kernels.testing import DEVICES

TARGETS = [
    pytest.param(backend, device, id=f"{backend}-{device}")
    for device in DEVICES
    for backend in testing.backends_for("mixed_scale_layout", device, torch.bool)
]


def layout_by_hand(fine_mask, scale_factor, num_prefix):
    """(image, candidate) of each packed row, and the first row of each region, by the text of the contract."""
    rows, starts = [], []
    for image, mask in enumerate(fine_mask.tolist()):
        height, width = len(mask), len(mask[0])
        rows += [(image, i) for i in range(num_prefix)]
        starts.append([])
        for y, x in ((y, x) for y in range(height) for x in range(width)):
            starts[-1].append(len(rows))
            if not mask[y][x]:
                rows.append((image, num_prefix + y * width + x))
                continue
            first_fine = num_prefix + height * width
            for dy, dx in ((dy, dx) for dy in range(scale_factor) for dx in range(scale_factor)):
                fine_row, fine_column = y * scale_factor + dy, x * scale_factor + dx
                rows.append((image, first_fine + fine_row * width * scale_factor + fine_column))
    return rows, starts


def check(fine_mask, scale_factor, num_prefix, backend, device, give_total):
    rows, starts = layout_by_hand(fine_mask, scale_factor, num_prefix)
    layout = mixed_scale_layout(
        fine_mask.to(device),
        scale_factor=scale_factor,
        num_prefix=num_prefix,
        total_tokens=len(rows) if give_total else None,
        backend=backend,
    )
    batch, height, width = fine_mask.shape
    assert isinstance(layout, MixedScaleLayout)
    assert layout.total_tokens == len(rows)
    assert isinstance(layout.total_tokens, int)
    assert layout.max_seqlen == num_prefix + height * width * scale_factor**2
    assert layout.grid_size == (height * scale_factor, width * scale_factor)
    assert layout.batch == batch
    assert layout.num_candidates == num_prefix + height * width * (1 + scale_factor**2)
    for name in ("cu_seqlens", "num_tokens", "batch_index", "token_index", "region_start"):
        x = getattr(layout, name)
        assert (x.dtype, x.device.type, x.is_contiguous()) == (torch.int32, device, True), name
    assert list(zip(layout.batch_index.tolist(), layout.token_index.tolist(), strict=True)) == rows
    assert layout.region_start.tolist() == starts
    counts = [sum(1 for image, _ in rows if image == i) for i in range(batch)]
    assert layout.num_tokens.tolist() == counts
    assert layout.cu_seqlens.tolist() == testing.offsets(counts).tolist()


@pytest.mark.parametrize(("backend", "device"), TARGETS)
@pytest.mark.parametrize(("scale_factor", "num_prefix"), [(2, 1), (2, 0), (2, 5), (3, 1), (4, 2)])
def test_matches_the_layout_by_hand(backend, device, scale_factor, num_prefix, poisoned_memory):
    for _, mask in testing.fine_masks(3, 7, 5):
        check(mask, scale_factor, num_prefix, backend, device, give_total=False)


@pytest.mark.parametrize(("backend", "device"), TARGETS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_drawn_masks(backend, device, data):
    side = 8 if testing.compiles(backend, device) else 9  # 64 regions, and no kernel for more
    batch, height, width = (data.draw(st.integers(low, high)) for low, high in ((0, 4), (1, side), (1, side)))
    cells = data.draw(st.lists(st.booleans(), min_size=batch * height * width, max_size=batch * height * width))
    mask = torch.tensor(cells, dtype=torch.bool).view(batch, height, width)
    give_total = data.draw(st.booleans())
    check(mask, data.draw(st.integers(2, 3)), data.draw(st.integers(0, 3)), backend, device, give_total)


@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_mask_may_be_strided(backend, device):
    mask = (torch.rand(2, 5, 4) < 0.5).transpose(1, 2)
    check(mask, 2, 1, backend, device, give_total=True)


@pytest.mark.parametrize(("backend", "device"), TARGETS)
@pytest.mark.parametrize("off_by", [-9, -1, 1, 9])
def test_wrong_total_stays_inside_the_tensors(backend, device, off_by, monkeypatch):
    # What a GPU without MSVIT_CHECK would do: the op of the backend runs, unchecked.
    from msvit_kernels import validation

    monkeypatch.setattr(validation, "checks_contents", lambda x: False)
    mask = (torch.rand(3, 4, 4) < 0.5).to(device)
    right = mixed_scale_layout(mask, backend=backend)
    wrong = mixed_scale_layout(mask, total_tokens=right.total_tokens + off_by, backend=backend)
    both = min(right.total_tokens, wrong.total_tokens)
    assert torch.equal(wrong.token_index[:both], right.token_index[:both])
    assert torch.equal(wrong.batch_index[:both], right.batch_index[:both])
    assert (wrong.token_index[both:] == 0).all()
    assert (wrong.batch_index[both:] == 0).all()


def test_cpu_result_does_not_depend_on_threads(set_threads):
    pytest.importorskip("msvit_kernels._C")
    mask = torch.rand(5, 60, 60) < 0.5  # regions and rows for two threads in every loop
    expected = mixed_scale_layout(mask, backend="reference")
    for n in (1, 2, 3):
        set_threads(n)
        layout = mixed_scale_layout(mask, backend="cpu")
        for name in ("cu_seqlens", "num_tokens", "batch_index", "token_index", "region_start"):
            assert torch.equal(getattr(layout, name), getattr(expected, name)), (n, name)


def test_opcheck():
    mask = torch.rand(2, 3, 3) < 0.5
    torch.library.opcheck(torch.ops.msvit.mixed_scale_layout_offsets.default, (mask, 2, 1, None))
    layout = mixed_scale_layout(mask)
    call = calls.MixedScaleLayoutIndices(layout.regions, layout.cu_seqlens, layout.total_tokens, num_prefix=1)
    torch.library.opcheck(torch.ops.msvit.mixed_scale_layout.default, (*flattener(type(call))(call), None))


def test_compile_keeps_one_graph_when_the_total_is_given():
    mask = torch.rand(2, 3, 3) < 0.5
    total = mixed_scale_layout(mask).total_tokens

    def call(mask):
        return mixed_scale_layout(mask, total_tokens=total).token_index + 1

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(mask), call(mask))
