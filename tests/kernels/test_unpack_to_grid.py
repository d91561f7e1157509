"""`unpack_to_grid` of every backend: a copy in forward, a sum in backward."""

import pytest
import torch

from msvit_kernels import calls, mixed_scale_layout, testing, unpack_to_grid
from msvit_kernels.ops.arguments import flattener
from msvit_kernels.testing import DEVICES

TARGETS = [
    pytest.param((backend, device, dtype), id=f"{backend}-{device}-{str(dtype).removeprefix('torch.')}")
    for device in DEVICES
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for backend in testing.backends_for("unpack_to_grid", device, dtype)
]


def grid_by_hand(tokens, layout):
    """The grid, cell by cell: the row of the fine token, or of the coarse token that covers the cell."""
    (height, width), s, prefix = layout.grid_size, layout.scale_factor, layout.num_prefix
    row_of = {
        (image, candidate): row
        for row, (image, candidate) in enumerate(
            zip(layout.batch_index.tolist(), layout.token_index.tolist(), strict=True)
        )
    }
    first_fine = prefix + (height // s) * (width // s)
    grid = tokens.new_empty(layout.batch, tokens.shape[1], height, width)
    for image in range(layout.batch):
        for y, x in ((y, x) for y in range(height) for x in range(width)):
            fine = (image, first_fine + y * width + x)
            coarse = (image, prefix + (y // s) * (width // s) + x // s)
            grid[image, :, y, x] = tokens[row_of.get(fine, row_of.get(coarse))]
    return grid


@pytest.mark.fewer_cases(keep=lambda target, dim, **sizes: target[2] == torch.bfloat16 or dim == 48)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("scale_factor", "num_prefix", "dim"), [(2, 1, 48), (3, 0, 5), (4, 5, 1), (2, 1, 384)])
def test_matches_the_grid_by_hand(target, scale_factor, num_prefix, dim, poisoned_memory):
    backend, device, dtype = target
    for _, mask in testing.fine_masks(3, 3, 4):
        layout = mixed_scale_layout(mask.to(device), scale_factor=scale_factor, num_prefix=num_prefix)
        tokens = torch.randn(layout.total_tokens, dim, device=device).to(dtype)
        assert torch.equal(unpack_to_grid(tokens, layout, backend=backend), grid_by_hand(tokens, layout))


@pytest.mark.parametrize("target", TARGETS)
def test_backward_matches_fp64(target, poisoned_memory):
    backend, device, dtype = target
    dim = 48 if testing.compiles(backend, device) else 20
    for _, mask in testing.fine_masks(3, 3, 4):
        layout = mixed_scale_layout(mask.to(device), num_prefix=2)
        tokens = torch.randn(layout.total_tokens, dim, device=device).to(dtype)
        dgrid = torch.randn(3, dim, 6, 8, device=device).to(dtype)

        def gradient(backend, dtype, tokens=tokens, dgrid=dgrid, layout=layout):
            leaf = tokens.detach().to(dtype).requires_grad_()
            unpack_to_grid(leaf, layout, backend=backend).backward(dgrid.to(dtype))
            return leaf.grad

        actual = gradient(backend, dtype)
        eager, oracle = gradient("reference", dtype), gradient("reference", torch.float64)
        testing.assert_accurate("dtokens", actual, eager, oracle)
        prefix = layout.token_index < 2
        assert (actual[prefix] == 0).all()


@pytest.mark.fewer_cases(keep=lambda target: target[2] == torch.bfloat16)
@pytest.mark.parametrize("target", TARGETS)
def test_rows_may_be_strided(target):
    backend, device, dtype = target
    layout = mixed_scale_layout((torch.rand(2, 3, 3) < 0.5).to(device))
    wide = torch.randn(layout.total_tokens, 64, device=device).to(dtype)
    strided = wide[:, 8:40]
    assert torch.equal(unpack_to_grid(strided, layout, backend=backend), unpack_to_grid(strided.contiguous(), layout))


@pytest.mark.parametrize("target", [target for target in TARGETS if target.values[0][2] == torch.bfloat16])
def test_backward_rounds_to_the_nearest_even_bf16(target):
    backend, device, dtype = target
    layout = mixed_scale_layout(torch.zeros(1, 1, 2, dtype=torch.bool, device=device), num_prefix=0)
    tokens = torch.zeros(2, 48, dtype=dtype, device=device, requires_grad=True)
    # The sum of a region's cells is between two bf16 numbers.
    cells = torch.tensor([[1, 2**-8, 1 + 2**-7, 2**-8], [0, 0, 0, 0]], dtype=dtype, device=device)
    unpack_to_grid(tokens, layout, backend=backend).backward(cells.expand(1, 48, 2, 4))
    assert tokens.grad[:, 0].tolist() == [1, 1 + 2**-6]
    assert torch.equal(tokens.grad, tokens.grad[:, :1].expand(-1, 48))


def test_cpu_bits_do_not_depend_on_threads(set_threads):
    pytest.importorskip("msvit_kernels._C")
    layout = mixed_scale_layout(torch.rand(5, 5, 5) < 0.5)
    tokens, dgrid = torch.randn(layout.total_tokens, 384, requires_grad=True), torch.randn(5, 384, 10, 10)

    def run(threads):
        set_threads(threads)
        grid = unpack_to_grid(tokens, layout, backend="cpu")
        return grid.detach(), *torch.autograd.grad(grid, tokens, dgrid)

    first = run(1)
    for threads in (2, 3):
        for x, y in zip(first, run(threads), strict=True):
            assert torch.equal(x, y)


def test_gradcheck():
    layout = mixed_scale_layout(torch.rand(2, 2, 2) < 0.5)
    tokens = torch.randn(layout.total_tokens, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unpack_to_grid(x, layout), [tokens])


def test_opcheck():
    layout = mixed_scale_layout(torch.rand(2, 2, 2) < 0.5)
    for grad in (False, True):
        tokens = torch.randn(layout.total_tokens, 3, requires_grad=grad)
        call = calls.UnpackToGrid(tokens, layout.regions)
        torch.library.opcheck(torch.ops.msvit.unpack_to_grid.default, (*flattener(type(call))(call), None))


def test_compile_keeps_one_graph():
    layout = mixed_scale_layout(torch.rand(2, 2, 2) < 0.5)
    tokens = torch.randn(layout.total_tokens, 3, requires_grad=True)
    compiled = torch.compile(lambda x: unpack_to_grid(x * 2, layout).sin(), fullgraph=True, backend="aot_eager")
    (actual,) = torch.autograd.grad(compiled(tokens).sum(), tokens)
    (expected,) = torch.autograd.grad(unpack_to_grid(tokens * 2, layout).sin().sum(), tokens)
    torch.testing.assert_close(actual, expected)
