"""The mixed-scale model: token modes, packed order, budgets, compilation, and wrong calls."""

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import msvit
from msvit.models.vit import TOKEN_MODES, MixedScaleVisionTransformer
from msvit.policies import Budget, Threshold
from tests.model.model_helpers import LOGITS_TOLERANCE, POOL_IDS, POOLS, images_of, mask_of, small_vit

MASKS = [
    pytest.param(lambda shape: mask_of((3, *shape)), id="random"),
    pytest.param(lambda shape: mask_of((1, *shape)), id="batch-1"),
    pytest.param(lambda shape: mask_of((4, *shape), fine=0.1), id="mostly-coarse"),
    pytest.param(lambda shape: torch.stack([torch.zeros(shape), torch.ones(shape)]).bool(), id="coarse-beside-fine"),
    pytest.param(lambda shape: torch.zeros(2, *shape).bool(), id="all-coarse"),
    pytest.param(lambda shape: torch.ones(2, *shape).bool(), id="all-fine"),
]


def small_model(**kwargs: Any) -> MixedScaleVisionTransformer:
    return msvit.from_timm(small_vit(**kwargs), 16, gate="entropy").eval()


MODEL = small_model()


@torch.no_grad()
@pytest.mark.parametrize("make_mask", MASKS)
@pytest.mark.parametrize("kwargs", POOLS, ids=POOL_IDS)
def test_token_modes_agree(kwargs: dict, make_mask) -> None:
    model = small_model(**kwargs)
    mask = make_mask(model.coarse_grid_size)
    images = images_of(48, batch=len(mask))
    results = {}
    for model.token_mode in TOKEN_MODES:
        tokens, layout = model.forward_features(images, mask)
        logits = model(images, mask)
        torch.testing.assert_close(model.forward_head(tokens, layout), logits, atol=LOGITS_TOLERANCE, rtol=0)
        results[model.token_mode] = (logits, tokens, layout.batch_index, layout.token_index, layout.cu_seqlens)
    for token_mode in ("trimmed", "masked"):
        torch.testing.assert_close(results[token_mode], results["packed"], atol=LOGITS_TOLERANCE, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3).flatmap(lambda batch: st.lists(st.booleans(), min_size=9 * batch, max_size=9 * batch)))
def test_token_modes_agree_for_any_mask(fine: list[bool]) -> None:
    mask = torch.tensor(fine).view(-1, 3, 3)
    model, images = MODEL, images_of(48, batch=len(mask))
    logits = []
    with torch.no_grad():
        for model.token_mode in TOKEN_MODES:
            logits.append(model(images, mask))
    torch.testing.assert_close(logits[1], logits[0], atol=LOGITS_TOLERANCE, rtol=0)
    torch.testing.assert_close(logits[2], logits[0], atol=LOGITS_TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "img_size"),
    [("16_32", 64), ("8_16", 32), ("32_64", 128), ("16_32", (32, 96))],
    ids=["16_32", "8_16", "32_64", "not-square"],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_token_modes_agree_for_every_patch_pair(name: str, img_size: int | tuple[int, int], batch: int) -> None:
    model = msvit.create_model(f"msvit_tiny_patch{name}_224", img_size=img_size, depth=3, gate="coarse").eval()
    torch.nn.init.normal_(model.pos_embed)
    images = torch.randn(batch, 3, *model.image_size)
    mask = mask_of((batch, *model.coarse_grid_size))
    logits = []
    for model.token_mode in TOKEN_MODES:
        logits.append(model(images, mask))
    torch.testing.assert_close(logits[1], logits[0], atol=LOGITS_TOLERANCE, rtol=0)
    torch.testing.assert_close(logits[2], logits[0], atol=LOGITS_TOLERANCE, rtol=0)
    assert not torch.allclose(model(images, ~mask), logits[0], atol=LOGITS_TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("token_mode", TOKEN_MODES)
def test_result_of_an_image_does_not_depend_on_its_neighbours(token_mode: str) -> None:
    model = small_model(global_pool="avg")
    model.token_mode = token_mode
    images, mask = images_of(48, batch=3), mask_of((3, 3, 3))
    alone = torch.cat([model(images[i : i + 1], mask[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, model(images, mask), atol=LOGITS_TOLERANCE, rtol=0)


@pytest.mark.parametrize("kwargs", POOLS, ids=POOL_IDS)
@pytest.mark.parametrize("token_mode", TOKEN_MODES)
@pytest.mark.parametrize("policy", [Threshold(), Budget(20)], ids=["threshold", "budget"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
def test_empty_batch(kwargs: dict, token_mode: str, policy: Threshold | Budget, grad: bool) -> None:
    model = msvit.from_timm(small_vit(**kwargs), 16, gate="mlp", policy=policy, token_mode=token_mode)
    with torch.set_grad_enabled(grad):
        assert model(torch.zeros(0, 3, 48, 48)).shape == (0, 5)


@torch.no_grad()
def test_memory_format_does_not_matter() -> None:
    model = small_model()
    images, mask = images_of(64), mask_of((2, 3, 3))
    crop = images[:, :, 8:56, 8:56]
    expected = model(crop.contiguous(), mask)
    assert torch.equal(model.gate(crop.contiguous()), model.gate(crop.contiguous(memory_format=torch.channels_last)))
    model.to(memory_format=torch.channels_last)
    for model.token_mode in TOKEN_MODES:
        for view in (crop, crop.contiguous(memory_format=torch.channels_last)):
            torch.testing.assert_close(model(view, mask), expected, atol=LOGITS_TOLERANCE, rtol=0)


@torch.no_grad()
def test_copies_and_exports() -> None:
    model = small_model()
    model.policy = Budget(20)
    images = images_of(48)
    assert torch.equal(copy.deepcopy(model)(images), model(images))
    assert torch.equal(pickle.loads(pickle.dumps(model))(images), model(images))
    exported = torch.export.export(model, (images,)).module()
    other = images_of(48, seed=5)
    torch.testing.assert_close(exported(other), model(other), atol=LOGITS_TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("tokens_per_image", [9, 20, 22.5, 36])
@pytest.mark.parametrize("seed", [1, 2])
def test_budget_gives_exactly_its_total(tokens_per_image: float, seed: int) -> None:
    model = small_model(reg_tokens=1)
    model.policy = Budget(tokens_per_image)
    tokens, layout = model.forward_features(images_of(48, batch=5, seed=seed))
    fine = int(5 * (tokens_per_image - 9) // 3)
    assert layout.total_tokens == tokens.shape[0] == 5 * (2 + 9) + 3 * fine
    assert int(layout.cu_seqlens[-1]) == layout.total_tokens
    assert int(layout.fine_mask.sum()) == fine


@torch.no_grad()
def test_gate_and_policy_decide_without_a_mask() -> None:
    model = small_model()
    images = images_of(48, batch=4)
    logits = model.gate(images)
    assert logits.shape == (4, 3, 3)
    model.policy = Threshold(float(logits.median().sigmoid()))
    mask = logits > logits.median()
    assert 0 < mask.sum() < mask.numel()
    assert torch.equal(model.forward_features(images)[1].fine_mask, mask)
    torch.testing.assert_close(model(images), model(images, mask))
    torch.testing.assert_close(model(images, gate_logits=logits), model(images))
    torch.testing.assert_close(model(images, gate_logits=-logits), model(images, -logits > logits.median()))


class NoDeviceToHost(TorchDispatchMode):
    """Fails on any operator that hands a value from the device to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_budget_never_waits_for_the_device() -> None:
    model = msvit.from_timm(small_vit(), 16, gate="mlp").train()
    for model.policy in (Budget(20), Budget(20, per="image")):
        with NoDeviceToHost():
            model(images_of(48))
    model.policy = Threshold()
    with NoDeviceToHost(), pytest.raises(AssertionError, match="waits for the device"):
        model(images_of(48))


@pytest.mark.parametrize(
    ("kwargs", "policy"),
    [(POOLS[0], Budget(20)), (POOLS[2], Budget(20.7, per="image")), (POOLS[4], Budget(20))],
    ids=["token", "avg-per-image", "map"],
)
def test_compiles_whole_with_a_budget(kwargs: dict, policy: Budget) -> None:
    model = small_model(**kwargs)
    model.policy = policy
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for seed in (1, 2):  # other images, other masks, the same graph
            images = images_of(48, seed=seed)
            torch.testing.assert_close(compiled(images), model(images), atol=LOGITS_TOLERANCE, rtol=0)


def test_compiles_whole_in_training() -> None:
    model = msvit.from_timm(small_vit(), 16, gate="mlp", policy=Budget(20))  # evaluation mode of dropout, no noise
    model.eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for forward in (model, compiled):
        model.zero_grad()
        forward(images_of(48)).square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert gradients[0]["gate.fc1.weight"].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-3)


def test_compiles_a_block() -> None:
    model = small_model()
    captured: list[Any] = []
    handle = model.blocks[0].register_forward_hook(lambda _, args, out: captured.extend([*args, out]))
    with torch.no_grad():
        model(images_of(48), mask_of((2, 3, 3)))
        handle.remove()
        x, sequences, expected = captured
        block = torch.compile(model.blocks[0], fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(block(x, sequences), expected)


@pytest.mark.parametrize("token_mode", TOKEN_MODES)
def test_checkpointed_blocks_give_the_same_gradients(token_mode: str) -> None:
    model = msvit.from_timm(small_vit(), 16, gate="mlp", token_mode=token_mode).eval()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images_of(48)).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.no_grad()
def test_bf16_model_is_near_the_fp32_one() -> None:
    model = small_model(qk_norm=True, global_pool="avg")
    images, mask = images_of(48), mask_of((2, 3, 3))
    expected = model(images, mask)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = model(images, mask).float()
    half = model.bfloat16()(images.bfloat16(), mask)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(autocast, expected, atol=0.1, rtol=0.05)
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.05)


def test_classifier_can_be_replaced() -> None:
    model = small_model()
    images, mask = images_of(48), mask_of((2, 3, 3))
    features = model.forward_head(*model.forward_features(images, mask), pre_logits=True)
    tokens, layout = model.forward_features(images, mask)
    assert torch.equal(model.forward_head(tokens, layout=layout, pre_logits=True), features)
    model.reset_classifier(3)
    assert model(images, mask).shape == (2, 3)
    assert model.get_classifier().out_features == model.num_classes == 3
    model.reset_classifier(0)
    torch.testing.assert_close(model(images, mask), features)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cu_seqlens": torch.zeros(1, dtype=torch.int32)}, "layout.num_tokens: expected int32"),
        ({"total_tokens": 3}, r"layout.batch_index: expected int32 \[3\]"),
    ],
    ids=["no_images", "total_tokens"],
)
def test_forward_head_refuses_a_layout_whose_fields_do_not_fit(change: dict, words: str) -> None:
    images, mask = images_of(48), mask_of((2, 3, 3))
    tokens, layout = MODEL.forward_features(images, mask)
    with pytest.raises(ValueError, match=words):
        MODEL.forward_head(tokens, dataclasses.replace(layout, **change))
    with pytest.raises(ValueError, match="tokens: expected shape"):
        MODEL.forward_head(tokens[1:], layout)


def test_no_weight_decay_names_parameters() -> None:
    model = msvit.from_timm(small_vit(), 16, gate="mlp")
    assert model.no_weight_decay() == {"pos_embed", "cls_token", "gate.pos_embed"}


GOOD = torch.zeros(2, 3, 48, 48)
MASK = torch.zeros(2, 3, 3, dtype=torch.bool)
WRONG_CALLS = [
    pytest.param((GOOD.numpy(),), {}, TypeError, "images: expected a tensor, got ndarray", id="images-type"),
    pytest.param((GOOD[0],), {}, ValueError, r"images: expected shape \[batch, 3, 48, 48\]", id="images-ndim"),
    pytest.param((GOOD[:, :1],), {}, ValueError, r"got \[2, 1, 48, 48\]", id="images-channels"),
    pytest.param((GOOD[..., :32],), {}, ValueError, r"got \[2, 3, 48, 32\]", id="images-size"),
    pytest.param((GOOD.int(),), {}, TypeError, "images: expected floats or uint8, got torch.int32", id="images-dtype"),
    pytest.param((GOOD.byte(),), {}, ValueError, "expected floats, since the model has no mean", id="uint8"),
    pytest.param((GOOD, MASK.tolist()), {}, TypeError, "fine_mask: expected a tensor, got list", id="mask-type"),
    pytest.param((GOOD, MASK.float()), {}, TypeError, "fine_mask: expected dtype bool, got torch.fl", id="mask-dtype"),
    pytest.param((GOOD, MASK[:1]), {}, ValueError, r"fine_mask: expected shape \[2, 3, 3\], got \[1", id="mask-batch"),
    pytest.param((GOOD, MASK[:, :2]), {}, ValueError, r"got \[2, 2, 3\]", id="mask-grid"),
    pytest.param((GOOD, MASK.to("meta")), {}, ValueError, "fine_mask: expected device cpu", id="mask-device"),
    pytest.param((GOOD,), {"gate_logits": torch.zeros(2, 9)}, ValueError, r"gate_logits: .* got \[2, 9\]", id="logits"),
]


@pytest.mark.parametrize(("args", "kwargs", "error", "words"), WRONG_CALLS)
@pytest.mark.parametrize("token_mode", TOKEN_MODES)
def test_wrong_call(token_mode: str, args: tuple, kwargs: dict, error: type[Exception], words: str) -> None:
    model = small_model()
    model.token_mode = token_mode
    with pytest.raises(error, match=words):
        model(*args, **kwargs)
    with pytest.raises(error, match=words):
        model.forward_features(*args, **kwargs)


def test_wrong_settings() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="token_mode: expected one of packed, trimmed, masked, got 'jagged'"):
        model.token_mode = "jagged"
    with pytest.raises(ValueError, match=r"expected 9 \(all coarse\) to 36 \(all fine\), got 37"):
        model.policy = Budget(37)
    with pytest.raises(TypeError, match=r"policy: expected a policy such as msvit\.policies\.Threshold, got float"):
        model.policy = 0.5
    model.gate = torch.nn.Flatten()
    with pytest.raises(ValueError, match=r"result of the gate: expected shape \[2, 3, 3\], got \[2, 6912\]"):
        model(GOOD)


def test_any_module_can_be_the_gate() -> None:
    class Brightness(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.nn.functional.avg_pool2d(images.mean(1), 16)

    model = small_model()
    model.gate = Brightness()
    images = images_of(48)
    assert torch.equal(model.forward_features(images)[1].fine_mask, Brightness()(images) > 0)
