"""A wrapped timm model against the timm model itself, and models that cannot be wrapped."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, ParallelScalingBlock, VisionTransformer

import msvit
from tests.model.model_helpers import LOGITS_TOLERANCE, downsampled, images_of, mask_of, randomise, small_vit

# Full depth, as these are the models that users bring; batch 1 where the model is large.
PLAIN = [
    pytest.param("vit_tiny_patch16_224", 224, 2, id="vit_tiny-224"),
    pytest.param("vit_tiny_patch16_224", 384, 2, id="vit_tiny-384"),
    pytest.param("vit_small_patch16_224", 224, 2, id="vit_small-224"),
    pytest.param("vit_small_patch16_224", 384, 1, id="vit_small-384"),
    pytest.param("vit_base_patch16_224", 224, 1, id="vit_base-224"),
    pytest.param("vit_base_patch16_224", 384, 1, id="vit_base-384"),
    pytest.param("deit_small_patch16_224", 224, 2, id="deit_small-224"),
    pytest.param("deit_small_patch16_224", 384, 1, id="deit_small-384"),
]
# (timm name, arguments, region in pixels); the depth is cut, every block being alike.
TOWERS = [
    pytest.param("vit_base_patch32_clip_224", {"depth": 3, "img_size": 256}, 64, id="clip-32"),
    pytest.param("vit_base_patch16_clip_quickgelu_224", {"depth": 2}, 32, id="clip-16-quickgelu"),
    pytest.param("vit_base_patch16_siglip_224", {"depth": 3}, 32, id="siglip"),
    pytest.param("vit_base_patch16_siglip_gap_224", {"depth": 2}, 32, id="siglip-average"),
    pytest.param("vit_small_patch14_reg4_dinov2", {"depth": 3, "img_size": 224}, 28, id="dinov2-registers"),
    pytest.param("vit_small_patch14_dinov2", {"depth": 2, "img_size": 224}, 28, id="dinov2"),
    pytest.param("vit_medium_patch16_gap_240", {"depth": 2, "img_size": 256}, 32, id="gap-no-class-token"),
    pytest.param("vit_giant_patch14_dinov2", {"depth": 1, "img_size": 112}, 28, id="dinov2-swiglu"),
]
VARIANTS = [
    pytest.param({"qk_norm": True}, id="qk-norm"),
    pytest.param({"global_pool": "avg"}, id="average"),
    pytest.param({"global_pool": "avg", "fc_norm": False}, id="average-no-fc-norm"),
    pytest.param({"global_pool": "avg", "pool_include_prefix": True}, id="average-with-prefix"),
    pytest.param({"global_pool": "map", "class_token": False}, id="attention-pool"),
    pytest.param({"global_pool": "map", "reg_tokens": 2}, id="attention-pool-prefix"),
    pytest.param({"global_pool": "avg", "class_token": False}, id="no-prefix"),
    pytest.param({"pos_embed": "none"}, id="no-positions"),
    pytest.param({"reg_tokens": 3, "no_embed_class": True, "init_values": 1e-5}, id="registers-layer-scale"),
    pytest.param({"pre_norm": True}, id="pre-norm"),
    pytest.param({"scale_attn_norm": True, "scale_mlp_norm": True}, id="scale-norms"),
    pytest.param({"qkv_bias": False, "proj_bias": False}, id="no-biases"),
    pytest.param({"num_classes": 0}, id="no-head"),
    pytest.param({"final_norm": False}, id="no-final-norm"),
    pytest.param({"img_size": (32, 64)}, id="not-square"),
]


def assert_all_fine(vit: VisionTransformer, coarse: int, images: torch.Tensor) -> None:
    model = msvit.from_timm(vit, coarse, gate="fine").eval()
    torch.testing.assert_close(model(images), vit(images), atol=LOGITS_TOLERANCE, rtol=0)


def assert_all_coarse(vit: VisionTransformer, coarse: int, images: torch.Tensor) -> None:
    model = msvit.from_timm(vit, coarse, gate="coarse").eval()
    factor = coarse // vit.patch_embed.patch_size[0]
    expected = downsampled(vit, factor)(F.avg_pool2d(images, factor))
    torch.testing.assert_close(model(images), expected, atol=LOGITS_TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("name", "img_size", "batch"), PLAIN)
def test_plain_vit(name: str, img_size: int, batch: int) -> None:
    vit = randomise(timm.create_model(name, img_size=img_size, weight_init="skip"))
    images = images_of(img_size, batch)
    assert_all_fine(vit, 32, images)
    assert_all_coarse(vit, 32, images)


@torch.no_grad()
@pytest.mark.parametrize(("name", "kwargs", "coarse"), TOWERS)
def test_tower(name: str, kwargs: dict, coarse: int) -> None:
    vit = randomise(timm.create_model(name, num_classes=11, weight_init="skip", **kwargs))
    images = images_of(vit.patch_embed.img_size[0])
    assert_all_fine(vit, coarse, images)
    assert_all_coarse(vit, coarse, images)


@torch.no_grad()
@pytest.mark.parametrize("kwargs", VARIANTS)
@pytest.mark.parametrize("coarse", [16, 32], ids=["s2", "s4"])
def test_variant_of_the_class(kwargs: dict, coarse: int) -> None:
    vit = small_vit(**{"img_size": 64, **kwargs})
    images = torch.randn(3, 3, *vit.patch_embed.img_size)
    assert_all_fine(vit, coarse, images)
    if vit.pos_embed is not None:
        assert_all_coarse(vit, coarse, images)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_training_step_equals_timm(drop_path_rate: float) -> None:
    """Same draws of drop path per image and the same gradients, all dropout but that of attention included."""
    vit = small_vit(drop_path_rate=drop_path_rate, drop_rate=0.3, init_values=0.1).train()
    model = msvit.from_timm(vit, 16, gate="fine").train()
    images = images_of(48, batch=6)
    results = []
    for forward in (vit, model):
        torch.manual_seed(3)
        vit.zero_grad()
        logits = forward(images)
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in vit.parameters())])
    torch.testing.assert_close(results[0], results[1], atol=1e-3, rtol=1e-4)


def test_dropout_of_projections_is_per_token() -> None:
    vit = small_vit(proj_drop_rate=0.5, pos_drop_rate=0.5)
    model = msvit.from_timm(vit, 16, gate="fine").train()
    images = images_of(48)
    assert not torch.equal(model(images), model(images))
    torch.testing.assert_close(model.eval()(images), vit(images), atol=LOGITS_TOLERANCE, rtol=0)


def test_parameter_names_are_those_of_timm() -> None:
    vit = small_vit(global_pool="map", reg_tokens=2, init_values=0.1, qk_norm=True)
    model = msvit.from_timm(vit, 16)
    own = [name for name in model.state_dict() if not name.startswith("gate.")]
    assert own == list(vit.state_dict())
    assert model.load_state_dict(vit.state_dict(), strict=False).unexpected_keys == []
    assert all(a is b for (_, a), (_, b) in zip(vit.named_parameters(), model.named_parameters(), strict=False))


def test_by_name_takes_timm_arguments_and_configuration() -> None:
    model = msvit.from_timm("vit_tiny_patch16_224", img_size=64, num_classes=3, depth=1, gate="entropy")
    assert (model.image_size, model.coarse_grid_size, model.num_classes) == ((64, 64), (2, 2), 3)
    assert (model.mean, model.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    clip = msvit.from_timm("vit_base_patch32_clip_224", coarse=64, img_size=128, depth=1)
    assert clip.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))


@torch.no_grad()
def test_uint8_images_are_normalised() -> None:
    model = msvit.from_timm(small_vit(), 16, gate="mlp", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)).eval()
    model.gate.fc4.bias.zero_()
    raw = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8)
    floats = (raw / 255 - torch.tensor(model.mean).view(3, 1, 1)) / torch.tensor(model.std).view(3, 1, 1)
    torch.testing.assert_close(model.gate(raw), model.gate(floats))
    for token_mode in ("packed", "trimmed", "masked"):
        model.token_mode = token_mode
        torch.testing.assert_close(model(raw), model(floats), atol=LOGITS_TOLERANCE, rtol=0)


class _Subclass(VisionTransformer):
    pass


REFUSED = [
    pytest.param(lambda: torch.nn.Linear(1, 1), 16, "and no subclass, got Linear", id="not-a-vit"),
    pytest.param(lambda: _Subclass(depth=1, embed_dim=32, num_heads=2), 32, "got _Subclass", id="subclass"),
    pytest.param(
        lambda: timm.create_model("deit_tiny_distilled_patch16_224"), 32, "VisionTransformerDistilled", id="distilled"
    ),
    pytest.param(
        lambda: timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)), 32, "SwinTransformer", id="swin"
    ),
    pytest.param(lambda: timm.create_model("eva02_tiny_patch14_224", depth=1), 28, "got Eva", id="rope"),
    pytest.param(lambda: timm.create_model("vit_tiny_r_s16_p8_224", depth=1), 32, "HybridEmbed", id="hybrid"),
    pytest.param(lambda: small_vit(block_fn=ParallelScalingBlock), 16, "ParallelScalingBlock", id="parallel-block"),
    pytest.param(lambda: small_vit(attn_layer="diff", num_heads=1), 16, "DiffAttention", id="diff-attention"),
    pytest.param(lambda: small_vit(patch_drop_rate=0.1), 16, "patch_drop_rate", id="patch-drop"),
    pytest.param(lambda: small_vit(attn_drop_rate=0.1), 16, "attn_drop_rate=0.1", id="attention-dropout"),
    pytest.param(lambda: small_vit(dynamic_img_size=True), 16, "dynamic_img_size", id="dynamic-size"),
    pytest.param(lambda: small_vit(dynamic_img_pad=True), 16, "dynamic_img_pad", id="dynamic-pad"),
    pytest.param(lambda: small_vit(global_pool="max"), 16, "global_pool='max'", id="max-pool"),
    pytest.param(lambda: small_vit(global_pool=""), 16, "global_pool=''", id="no-pool"),
    pytest.param(lambda: small_vit(global_pool="prr"), 16, "global_pool='prr'", id="prr-pool"),
    pytest.param(lambda: small_vit(in_chans=1), 16, "in_chans=1; expected 3", id="channels"),
    pytest.param(lambda: small_vit(embed_norm_layer="layernorm"), 16, "norm in patch_embed", id="patch-norm"),
    pytest.param(lambda: small_vit(embed_dim=24), 16, "head_dim 12", id="head-dim"),
    pytest.param(lambda: small_vit(norm_layer="batchnorm1d"), 16, "BatchNorm1d", id="batch-norm"),
    pytest.param(lambda: small_vit(depth=0), 16, "no blocks", id="no-blocks"),
    pytest.param(lambda: small_vit(patch_size=(8, 16)), 16, "8 x 16 pixels; expected square", id="oblong-patches"),
    pytest.param(lambda: small_vit(), 8, "coarse=8; expected a multiple of 8 from 16", id="coarse-too-small"),
    pytest.param(lambda: small_vit(), 20, "coarse=20; expected a multiple of 8", id="coarse-no-multiple"),
    pytest.param(lambda: small_vit(), 32, "images of 48 pixels .* use img_size=32 or 64", id="image-size"),
]


@pytest.mark.parametrize(("make", "coarse", "words"), REFUSED)
def test_refuses_by_name(make, coarse: int, words: str) -> None:
    vit = make()
    with pytest.raises(ValueError, match=words):
        msvit.from_timm(vit, coarse)


WRONG_CALLS = [
    pytest.param((3,), {}, TypeError, "expected a timm VisionTransformer or its name, got int", id="no-model"),
    pytest.param(("vit_huge_patch3_1",), {}, ValueError, "no model named 'vit_huge_patch3_1'", id="unknown-name"),
    pytest.param((small_vit(), "16"), {}, TypeError, "coarse: expected an int.* got str", id="coarse-type"),
    pytest.param((small_vit(), 16), {"pretrained": True}, TypeError, "pretrained: expected only", id="pretrained"),
    pytest.param((small_vit(), 16), {"num_classes": 3}, TypeError, "num_classes: expected only", id="timm-argument"),
    pytest.param((small_vit(), 16), {"gate": "best"}, ValueError, "gate: expected one of mlp, .*'best'", id="gate"),
    pytest.param(
        (small_vit(), 16), {"gate": 1}, TypeError, "gate: expected a name or a module, got int", id="gate-type"
    ),
    pytest.param((small_vit(), 16), {"token_mode": "ragged"}, ValueError, "token_mode: expected one of", id="mode"),
    pytest.param((small_vit(), 16), {"policy": 0.5}, TypeError, "policy: expected a policy.* got float", id="policy"),
    pytest.param(
        (small_vit(), 16),
        {"policy": msvit.policies.Budget(37)},
        ValueError,
        r"expected 9 \(all coarse\) to 36 \(all fine\), got 37",
        id="budget",
    ),
    pytest.param((small_vit(), 16), {"mean": (0.5, 0.5, 0.5)}, ValueError, "mean, std: expected both", id="mean-only"),
    pytest.param(
        (small_vit(), 16),
        {"gate": "radial", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.0, 0.5)},
        ValueError,
        "std: expected numbers above zero",
        id="std-zero",
    ),
]


@pytest.mark.parametrize(("args", "kwargs", "error", "words"), WRONG_CALLS)
def test_wrong_call(args: tuple, kwargs: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        msvit.from_timm(*args, **kwargs)


def test_refused_block_is_named_by_its_place() -> None:
    vit = small_vit()
    vit.blocks[1] = ParallelScalingBlock(32, 2)
    assert type(vit.blocks[0]) is Block
    with pytest.raises(ValueError, match=r"blocks\.1 of class ParallelScalingBlock"):
        msvit.from_timm(vit, 16)


def test_mask_replaces_the_gate() -> None:
    model = msvit.from_timm(small_vit(), 16, gate="coarse").eval()
    mask = mask_of((2, 3, 3))
    _, layout = model.forward_features(images_of(48), mask)
    assert torch.equal(layout.fine_mask, mask)
