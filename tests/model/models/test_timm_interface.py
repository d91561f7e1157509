"""timm's tools and scripts on a wrapped model: layer-wise learning rates, transforms of images, another classifier."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor, nn

import msvit
from msvit.models import MixedScaleVisionTransformer
from msvit.tokens.sequences import AttentionTerms, Sequences
from tests.model.model_helpers import LOGITS_TOLERANCE, POOL_IDS, POOLS, images_of, small_vit

TINY = "msvit_tiny_patch16_32_224"


class Scaled(nn.Module):
    """A reducer with a parameter."""

    place = "before_block"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32, 32))

    def forward(self, x: Tensor, sequences: Sequences, attention: AttentionTerms | None) -> tuple[Tensor, Sequences]:
        return x @ self.weight, sequences


def rates(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Learning rate scale and weight decay of each parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("kwargs", POOLS, ids=POOL_IDS)
def test_layer_decay_is_that_of_the_timm_model(kwargs: dict) -> None:
    vit = small_vit(depth=3, init_values=0.1, pre_norm=True, **kwargs)
    model = msvit.from_timm(vit, 16)
    model.reducers[1] = Scaled()
    expected = rates(vit, param_groups_layer_decay(vit, 0.05, vit.no_weight_decay(), layer_decay=0.5))
    found = rates(model, param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5))
    assert {name: found[name] for name in expected} == expected
    scales = {name: scale for name, (scale, _) in found.items()}
    assert [scales[f"blocks.{i}.mlp.fc2.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert scales["patch_embed.proj.weight"] == scales["pos_embed"] == 0.0625
    assert {scale for name, scale in scales.items() if name.startswith(("gate.", "reducers.", "head."))} == {1.0}
    assert found["gate.pos_embed"] == (1.0, 0.0)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5)
    assert {group["lr_scale"] for group in optimizer.param_groups} == {0.0625, 0.125, 0.25, 0.5, 1.0}


CONFIGURED = [
    pytest.param(lambda: msvit.from_timm("vit_tiny_patch16_224", img_size=256, depth=1), (256, 256), id="by-name"),
    pytest.param(lambda: msvit.from_timm(small_vit(img_size=(32, 64)), 16), (32, 64), id="model-without-config"),
    pytest.param(lambda: msvit.create_model(TINY, img_size=64, depth=1), (64, 64), id="create-model"),
    pytest.param(
        lambda: timm.create_model(TINY, depth=1, pretrained_cfg_overlay={"input_size": (3, 96, 64)}),
        (96, 64),
        id="overlay",
    ),
    pytest.param(
        lambda: msvit.from_timm("vit_base_patch32_clip_224", 64, img_size=128, depth=1), (128, 128), id="clip"
    ),
    pytest.param(
        lambda: timm.create_model(TINY, depth=1, img_size=32, pretrained_cfg_overlay={"test_input_size": (3, 64, 64)}),
        (32, 32),
        id="size-for-tests",
    ),
]


@torch.no_grad()
@pytest.mark.parametrize(("make", "img_size"), CONFIGURED)
@pytest.mark.parametrize("use_test_size", [False, True], ids=["train", "test"])
def test_timm_transform_makes_images_for_the_model(make, img_size: tuple[int, int], use_test_size: bool) -> None:
    model = make().eval()
    config = timm.data.resolve_model_data_config(model, use_test_size=use_test_size)
    photograph = Image.fromarray(np.full((300, 400, 3), 255, dtype=np.uint8))
    image = timm.data.create_transform(**config)(photograph)
    assert image.shape == (3, *img_size)
    assert model(image[None]).isfinite().all()
    if model.mean is not None:
        mean, std = (torch.tensor(values) for values in (model.mean, model.std))
        torch.testing.assert_close(image[:, 0, 0], (1 - mean) / std)


@pytest.mark.parametrize("create", [timm.create_model, msvit.create_model], ids=["timm", "msvit"])
def test_configuration_without_weights(create) -> None:
    overlay = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "crop_pct": 0.7, "num_classes": 6}
    model = create(TINY, depth=1, pretrained_cfg_overlay=overlay)
    config = timm.data.resolve_model_data_config(model)
    assert (model.mean, model.std, model.num_classes) == (overlay["mean"], overlay["std"], 6)
    assert (config["mean"], config["std"], config["crop_pct"]) == (model.mean, model.std, 0.7)
    assert model.gate.mean.flatten().tolist() == pytest.approx(overlay["mean"])
    assert create(TINY, depth=1, pretrained_cfg="augreg_in21k").num_classes == 21843
    assert create(TINY, depth=1, pretrained_cfg={"mean": (0.3,) * 3}, num_classes=2).mean == (0.3,) * 3
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(nothing\) for vit_tiny_patch16_224"):
        create(TINY, depth=1, pretrained_cfg="nothing")
    with pytest.raises(TypeError, match="meen"):
        create(TINY, depth=1, pretrained_cfg_overlay={"meen": (0.1, 0.2, 0.3)})


def test_configuration_follows_the_model() -> None:
    model = msvit.from_timm("vit_tiny_patch16_224", img_size=64, depth=1, mean=(0.2,) * 3, std=(0.3,) * 3)
    assert timm.data.resolve_model_data_config(model)["mean"] == (0.2,) * 3
    model.mean = (0.7, 0.7, 0.7)
    assert model.default_cfg == model.pretrained_cfg
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["classifier"]) == ((0.7,) * 3, "head")


POOLING = [
    pytest.param({}, "avg", id="token-to-avg"),
    pytest.param({"global_pool": "avg"}, "token", id="avg-to-token"),
    pytest.param({"global_pool": "map", "class_token": False}, "avg", id="map-to-avg"),
    pytest.param({"global_pool": "map"}, "token", id="map-to-token"),
    pytest.param({"global_pool": "map"}, "map", id="map-to-map"),
]


def reset_alike(kwargs: dict, global_pool: str) -> tuple[MixedScaleVisionTransformer, nn.Module]:
    vit = small_vit(**kwargs)
    model = msvit.from_timm(vit, 16, gate="fine").eval()
    for wrapped in (vit, model):
        wrapped.reset_classifier(3, global_pool)
    model.head.load_state_dict(vit.head.state_dict())
    return model, vit


@torch.no_grad()
@pytest.mark.parametrize(("kwargs", "global_pool"), POOLING)
def test_reset_classifier_with_another_pooling(kwargs: dict, global_pool: str) -> None:
    model, vit = reset_alike(kwargs, global_pool)
    images = images_of(48)
    torch.testing.assert_close(model(images), vit(images), atol=LOGITS_TOLERANCE, rtol=0)
    assert set(vit.state_dict()) == set(model.state_dict())


WRONG_CALLS = [
    pytest.param({}, (3, "map"), ValueError, "global_pool: expected one of token, avg for .* got 'map'", id="map"),
    pytest.param({}, (3, "max"), ValueError, "global_pool: expected one of token, avg for .* got 'max'", id="max"),
    pytest.param(
        {"global_pool": "avg", "class_token": False}, (3, "token"), ValueError, "expected one of avg for", id="no-token"
    ),
    pytest.param({}, (-1,), ValueError, "num_classes: expected at least 0, got -1", id="negative"),
    pytest.param({}, ("3",), TypeError, "num_classes: expected an int, got str", id="type"),
]


@pytest.mark.parametrize(("kwargs", "args", "error", "words"), WRONG_CALLS)
def test_wrong_reset(kwargs: dict, args: tuple, error: type[Exception], words: str) -> None:
    model = msvit.from_timm(small_vit(**kwargs), 16)
    before = (model.head, model.global_pool, model.num_classes)
    with pytest.raises(error, match=words):
        model.reset_classifier(*args)
    assert (model.head, model.global_pool, model.num_classes) == before
