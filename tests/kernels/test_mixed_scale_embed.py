"""`mixed_scale_embed` of every backend against fp64 and against a convolution."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from msvit_kernels import calls, mixed_scale_embed, mixed_scale_layout, testing
from msvit_kernels.ops.arguments import flattener
from msvit_kernels.testing import DEVICES

MEAN, STD = (0.48, 0.45, 0.4), (0.23, 0.22, 0.25)
IMAGE_DTYPES = [torch.float32, torch.uint8]
TARGETS = [
    pytest.param((backend, device, dtype), id=f"{backend}-{device}-{str(dtype).removeprefix('torch.')}")
    for device in DEVICES
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for backend in testing.backends_for("mixed_scale_embed", device, dtype, images_dtype=torch.float32)
    if backend != "reference"
]


def make_inputs(mask, patch_size, scale_factor, num_prefix, dim, dtype, images_dtype, device="cpu", bias=True):
    batch, height, width = mask.shape
    side = scale_factor * patch_size
    images = torch.rand(batch, 3, height * side, width * side, device=device)
    images = (images * 255).to(torch.uint8) if images_dtype == torch.uint8 else images.to(images_dtype)
    layout = mixed_scale_layout(mask.to(device), scale_factor=scale_factor, num_prefix=num_prefix)
    weight = torch.randn(dim, 3, patch_size, patch_size, device=device) / (3 * patch_size**2) ** 0.5
    table = torch.randn(layout.num_candidates, dim, device=device)
    parameters = [weight.to(dtype), torch.randn(dim, device=device).to(dtype) if bias else None, table.to(dtype)]
    return images, layout, parameters, torch.randn(layout.total_tokens, dim, device=device).to(dtype)


def run(inputs, backend, dtype=None, mean=None, std=None):
    """Output and gradients of one call, by name."""
    images, layout, parameters, dout = inputs
    cast = lambda x: None if x is None else x.detach().to(dtype or x.dtype).requires_grad_()  # noqa: E731
    weight, bias, table = (cast(x) for x in parameters)
    if images.is_floating_point():
        images = cast(images)
    patch_size = weight.shape[2]
    out = mixed_scale_embed(
        images, layout, weight, bias, table, patch_size=patch_size, mean=mean, std=std, backend=backend
    )
    out.backward(dout.to(out.dtype))
    results = {"out": out.detach(), "dweight": weight.grad, "dtable": table.grad}
    if bias is not None:
        results["dbias"] = bias.grad
    if images.is_floating_point():
        results["dimages"] = images.grad
    return results


def check_accuracy(inputs, backend, **normalisation):
    oracle = run(inputs, "reference", torch.float64, **normalisation)
    eager = run(inputs, "reference", **normalisation)
    for name, actual in run(inputs, backend, **normalisation).items():
        testing.assert_accurate(name, actual, eager[name], oracle[name])


@pytest.mark.fewer_cases(keep=lambda target, images_dtype: target[2] == torch.bfloat16 or images_dtype in IMAGE_DTYPES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("images_dtype", [torch.float32, torch.uint8, torch.bfloat16, torch.float16], ids=str)
def test_forward_and_backward_match_fp64(target, images_dtype, poisoned_memory):
    backend, device, dtype = target
    for _, mask in testing.fine_masks(2, 2, 3):
        inputs = make_inputs(mask, 8, 2, 1, 40, dtype, images_dtype, device)
        check_accuracy(inputs, backend, mean=MEAN, std=STD)


@pytest.mark.fewer_cases(keep=lambda target, **sizes: target[2] == torch.bfloat16)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("patch_size", "scale_factor", "num_prefix", "dim"),
    [(16, 2, 1, 72), (14, 2, 5, 48), (8, 4, 0, 33), (4, 3, 2, 1), (32, 2, 1, 16)],
)
def test_shapes(target, patch_size, scale_factor, num_prefix, dim, poisoned_memory):
    backend, device, dtype = target
    mask = torch.rand(3, 2, 2) < 0.5
    check_accuracy(
        make_inputs(mask, patch_size, scale_factor, num_prefix, dim, dtype, torch.float32, device, bias=False), backend
    )


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_drawn_masks(target, data):
    backend, device, dtype = target
    batch, height, width = (data.draw(st.integers(1, high)) for high in (3, 4, 4))
    cells = data.draw(st.lists(st.booleans(), min_size=batch * height * width, max_size=batch * height * width))
    mask = torch.tensor(cells, dtype=torch.bool).view(batch, height, width)
    images_dtype = data.draw(st.sampled_from(IMAGE_DTYPES))
    dims = [40] if testing.compiles(backend, device) else [8, 65] if backend == "triton" else [8, 65, 192]
    dim = data.draw(st.sampled_from(dims))
    inputs = make_inputs(mask, 8, 2, 1, dim, dtype, images_dtype, device)
    check_accuracy(inputs, backend, mean=MEAN, std=STD)


@pytest.mark.fewer_cases(keep=lambda target, with_bias: target[2] == torch.bfloat16 or with_bias)
@pytest.mark.parametrize("target", [target for target in TARGETS if target.values[0][0] == "triton"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_many_tokens_are_gathered_and_multiplied(target, with_bias, monkeypatch, poisoned_memory):
    kernels = pytest.importorskip("msvit_kernels.triton.mixed_scale_embed")
    monkeypatch.setattr(kernels, "FUSED_TOKENS", 0)
    backend, device, dtype = target
    for _, mask in testing.fine_masks(2, 2, 3):
        inputs = make_inputs(mask, 8, 2, 1, 40, dtype, torch.uint8, device, bias=with_bias)
        check_accuracy(inputs, backend, mean=MEAN, std=STD)


@pytest.mark.fewer_cases(keep=lambda target: target[2] == torch.bfloat16)
@pytest.mark.parametrize("target", TARGETS)
def test_same_inputs_give_the_same_bits(target):
    backend, device, dtype = target
    patch_size, dim = (8, 40) if testing.compiles(backend, device) else (16, 96)
    inputs = make_inputs(torch.rand(4, 3, 3) < 0.5, patch_size, 2, 1, dim, dtype, torch.float32, device)
    first, second = run(inputs, backend), run(inputs, backend)
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


@pytest.mark.parametrize(("size", "dim"), [((5, 5, 5), 96), ((1, 2, 3), 200)], ids=["many_rows", "few_rows"])
def test_cpu_bits_do_not_depend_on_threads(size, dim, set_threads):
    # Threads divide the columns of the result if it has few rows.
    pytest.importorskip("msvit_kernels._C")
    inputs = make_inputs(torch.rand(size) < 0.5, 16, 2, 1, dim, torch.float32, torch.float32)
    results = []
    for n in (1, 2, 3):
        set_threads(n)
        results.append(run(inputs, "cpu"))
    for other in results[1:]:
        for name, x in results[0].items():
            assert torch.equal(x, other[name]), name


def test_all_fine_is_the_patch_convolution():
    images, layout, (weight, bias, table), _ = make_inputs(
        torch.ones(2, 3, 3, dtype=torch.bool), 8, 2, 0, 20, torch.float64, torch.float64
    )
    out = mixed_scale_embed(images, layout, weight, bias, table, patch_size=8)
    grid = F.conv2d(images, weight, bias, stride=8)  # [batch, dim, Hf, Wf]
    grid = grid + table[9:].T.view(20, 6, 6)
    by_region = grid.view(2, 20, 3, 2, 3, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 20)
    torch.testing.assert_close(out, by_region)


def test_all_coarse_is_the_convolution_of_the_downsampled_image():
    images, layout, (weight, bias, table), _ = make_inputs(
        torch.zeros(2, 3, 3, dtype=torch.bool), 8, 2, 1, 20, torch.float64, torch.float64
    )
    out = mixed_scale_embed(images, layout, weight, bias, table, patch_size=8).view(2, 10, 20)
    grid = F.conv2d(F.avg_pool2d(images, 2), weight, bias, stride=8).flatten(2).mT
    torch.testing.assert_close(out[:, 1:], grid + table[1:10])
    torch.testing.assert_close(out[:, 0], table[:1].expand(2, -1))


def test_gradcheck():
    images, layout, parameters, _ = make_inputs(
        torch.tensor([[[True, False]], [[False, False]]]), 2, 2, 1, 3, torch.float64, torch.float64
    )
    leaves = [x.requires_grad_() for x in (images, *parameters)]

    def call(images, weight, bias, table):
        return mixed_scale_embed(images, layout, weight, bias, table, patch_size=2, mean=MEAN, std=STD)

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("target", TARGETS)
def test_images_may_be_channels_last(target):
    backend, device, dtype = target
    dim = 40 if testing.compiles(backend, device) else 16
    images, layout, parameters, _ = make_inputs(torch.rand(2, 2, 2) < 0.5, 8, 2, 1, dim, dtype, torch.float32, device)
    expected = mixed_scale_embed(images, layout, *parameters, patch_size=8, backend=backend)
    strided = images.to(memory_format=torch.channels_last)
    assert torch.equal(mixed_scale_embed(strided, layout, *parameters, patch_size=8, backend=backend), expected)


def test_opcheck():
    images, layout, (weight, bias, table), _ = make_inputs(
        torch.rand(2, 2, 2) < 0.5, 4, 2, 1, 6, torch.float32, torch.float32
    )
    rows = layout.cu_seqlens, layout.batch_index, layout.token_index
    for grad in (False, True):
        images, weight, bias, table = (x.detach().requires_grad_(grad) for x in (images, weight, bias, table))
        patches = calls.Patches(images, layout.regions, *rows, 1, weight, 4, list(MEAN), list(STD))
        call = calls.MixedScaleEmbed(patches, table, bias)
        torch.library.opcheck(torch.ops.msvit.mixed_scale_embed.default, (*flattener(type(call))(call), None))


def test_compile_keeps_one_graph():
    images, layout, parameters, _ = make_inputs(torch.rand(2, 2, 2) < 0.5, 4, 2, 1, 6, torch.float32, torch.float32)
    parameters = [x.requires_grad_() for x in parameters]

    def call(*parameters):
        return mixed_scale_embed(images, layout, *parameters, patch_size=4).sin()

    expected = torch.autograd.grad(call(*parameters).sum(), parameters)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*parameters).sum(), parameters), expected, strict=True):
        torch.testing.assert_close(a, b)
