"""Models and operators in properties that need a GPU: no wait for the device, CUDA graphs, training, agreement.

The operators' own tests run on every device.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from msvit_kernels import mixed_scale_layout, testing

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("cuda" not in testing.DEVICES, reason="needs a GPU")]
# The id is for `checks.run_tests`, which picks tests by it.
ON_CUDA = pytest.mark.parametrize("device", [pytest.param("cuda", id="cuda-cuda")])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch):
    monkeypatch.delenv("MSVIT_CHECK", raising=False)  # would look at what the device holds


@pytest.fixture
def no_waiting():
    """A function that makes torch refuse, until the end of the test, every operation that waits for the device."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def make_model(device, tokens_per_image=None):
    """Two blocks of two heads of 64 on images of 64 pixels, which have 16 regions."""
    # Not above, or every process that collects the tests would wait for timm.
    from timm.models.vision_transformer import VisionTransformer

    import msvit
    from msvit.policies import Budget

    vit = VisionTransformer(img_size=64, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=5)
    with torch.no_grad():
        for parameter in vit.parameters():  # or what starts at zero would hide what is wrong with it
            parameter.add_(0.1 * torch.randn_like(parameter))
    policy = None if tokens_per_image is None else Budget(tokens_per_image)
    return msvit.from_timm(vit, 16, gate="mlp", policy=policy).to(device).eval()


@ON_CUDA
@DTYPES
def test_token_modes_agree(device, dtype):
    model = make_model(device).to(dtype)
    images, mask = torch.randn(3, 3, 64, 64, device=device, dtype=dtype), (torch.rand(3, 4, 4) < 0.5).to(device)
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        exact.token_mode = "masked"  # of torch alone, but for the embedding
        expected = exact(images.double(), mask)
        results = {}
        for model.token_mode in ("masked", "trimmed", "packed"):
            results[model.token_mode] = model(images, mask)
    error = (results["masked"].double() - expected).abs().max().item()
    bound = 4 * error + 16 * torch.finfo(dtype).eps * expected.abs().max().item()
    for name, logits in results.items():
        assert (logits.double() - expected).abs().max().item() <= bound, name


@ON_CUDA
def test_gradients_of_a_training_step_are_those_of_the_cpu(device):
    model = make_model("cpu")
    images, mask = torch.randn(3, 3, 64, 64), torch.rand(3, 4, 4) < 0.5
    labels = torch.tensor([0, 4, 2])

    def gradients(model, place):
        loss = F.cross_entropy(
            model(images.to(place, next(model.parameters()).dtype), mask.to(place)), labels.to(place)
        )
        parameters = [(name, p) for name, p in model.named_parameters() if not name.startswith("gate.")]
        found = torch.autograd.grad(loss, [p for _, p in parameters])
        return {name: gradient for (name, _), gradient in zip(parameters, found, strict=True)}

    exact, eager = gradients(copy.deepcopy(model).double(), "cpu"), gradients(model, "cpu")
    for name, gradient in gradients(copy.deepcopy(model).to(device), device).items():
        error = (gradient.cpu().double() - exact[name]).abs().max().item()
        cpu_error = (eager[name].double() - exact[name]).abs().max().item()
        rounding = 16 * torch.finfo(torch.float32).eps * exact[name].abs().max().item()
        assert error <= 4 * cpu_error + rounding + 1e-7, name


@ON_CUDA
def test_a_learned_gate_gets_a_gradient_under_autocast(device):
    model = make_model(device).train()
    with torch.autocast(device, torch.bfloat16):
        logits = model(torch.randn(4, 3, 64, 64, device=device))
        loss = F.cross_entropy(logits.float(), torch.arange(4, device=device))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert any(parameter.grad.any() for parameter in model.gate.parameters())


@ON_CUDA
@DTYPES
def test_a_budget_never_waits_for_the_device(device, dtype, no_waiting):
    model = make_model(device, tokens_per_image=30).to(dtype)
    images = torch.randn(3, 3, 64, 64, device=device, dtype=dtype)
    with torch.no_grad():
        expected = model(images)  # what is compiled or loaded by the first call may wait
        no_waiting()
        logits = model(images)
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(logits, expected)


@ON_CUDA
@torch.no_grad()
def test_a_graph_of_the_model_takes_other_images(device):
    model = make_model(device, tokens_per_image=30).bfloat16()
    images = torch.randn(3, 3, 64, 64, device=device, dtype=torch.bfloat16)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        model(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model(images)
    before = model(images)
    images.copy_(torch.randn_like(images))
    graph.replay()
    expected = model(images)
    error = (captured - expected).abs().max().item()
    # cuBLAS may take another product in a graph.
    assert error <= 16 * torch.finfo(torch.bfloat16).eps * expected.abs().max().item()
    assert (expected - before).abs().max().item() > 10 * error


@ON_CUDA
def test_a_layout_whose_total_is_known_copies_nothing_from_the_device(device, no_waiting):
    mask = (torch.rand(5, 6, 7) < 0.5).to(device)
    expected = mixed_scale_layout(mask)
    no_waiting()
    layout = mixed_scale_layout(mask, total_tokens=expected.total_tokens)
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(layout.token_index, expected.token_index)
    assert torch.equal(layout.batch_index, expected.batch_index)
