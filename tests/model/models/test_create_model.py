"""Models by name, from msvit and from timm."""

from pathlib import Path

import pytest
import timm
import torch

import msvit
from msvit.models import NAMES
from msvit.policies import Budget
from tests.model.model_helpers import mask_of

TINY = "msvit_tiny_patch16_32_64"


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
@pytest.mark.parametrize(("scales", "patch_size", "coarse"), [("16_32", 16, 32), ("8_16", 8, 16), ("32_64", 32, 64)])
def test_sizes_are_those_of_timm(size: str, scales: str, patch_size: int, coarse: int) -> None:
    with torch.device("meta"):
        model = msvit.create_model(f"msvit_{size}_patch{scales}_384", gate="fine")
        vit = timm.create_model(f"vit_{size}_patch16_384", patch_size=patch_size)
    assert (model.patch_size, model.coarse, model.image_size) == (patch_size, coarse, (384, 384))
    shapes = {name: tensor.shape for name, tensor in vit.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    assert model.num_heads == vit.blocks[0].attn.num_heads


@pytest.mark.parametrize("img_size", [64, 96, 160, (32, 96)])
def test_any_image_size_that_regions_divide(img_size: int | tuple[int, int]) -> None:
    model = msvit.create_model("msvit_tiny_patch16_32_224", img_size=img_size, depth=1)
    images = torch.randn(2, 3, *model.image_size)
    assert model(images, mask_of((2, *model.coarse_grid_size))).shape == (2, 1000)
    if isinstance(img_size, int):
        assert msvit.create_model(f"msvit_tiny_patch16_32_{img_size}", depth=1).image_size == (img_size, img_size)


def test_keyword_arguments_reach_their_places() -> None:
    gate = msvit.gates.RadialGate(32, radius=0.1)
    model = msvit.create_model(
        TINY,
        gate=gate,
        policy=Budget(7),
        token_mode="masked",
        num_classes=7,
        drop_path_rate=0.2,
        depth=3,
        global_pool="avg",
        mean=(0.1, 0.2, 0.3),
        std=(1, 2, 3),
    )
    assert (model.gate, model.policy, model.token_mode) == (gate, Budget(7), "masked")
    assert (model.num_classes, len(model.blocks), model.global_pool) == (7, 3, "avg")
    assert [block.drop_path1.drop_prob for block in model.blocks[1:]] == pytest.approx([0.1, 0.2])
    assert (model.mean, model.std) == ((0.1, 0.2, 0.3), (1, 2, 3))


def test_checkpoint_path(tmp_path: Path) -> None:
    saved = msvit.create_model(TINY, depth=1)
    msvit.save_checkpoint(saved, tmp_path / "model.safetensors")
    loaded = msvit.create_model(TINY, depth=1, checkpoint_path=tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded.state_dict(), saved.state_dict(), rtol=0, atol=0)
    other = msvit.create_model(
        TINY, depth=1, num_classes=2, checkpoint_path=tmp_path / "model.safetensors", load_head=False
    )
    assert torch.equal(other.cls_token, saved.cls_token)
    assert timm.create_model(NAMES[0], depth=1, img_size=64, checkpoint_path=str(tmp_path / "model.safetensors"))


def test_timm_lists_and_creates_the_models() -> None:
    assert set(timm.list_models("msvit_*")) == set(NAMES)
    assert "msvit_small_patch16_32_224" in NAMES
    assert "msvit_small_patch16_32_384" in NAMES
    model = timm.create_model("msvit_small_patch16_32_224", num_classes=3, depth=1, gate="entropy", drop_path_rate=0.1)
    assert isinstance(model, msvit.MixedScaleVisionTransformer)
    assert model(torch.randn(1, 3, 224, 224)).shape == (1, 3)
    config = timm.data.resolve_model_data_config(model)
    assert (config["input_size"], config["mean"]) == ((3, 224, 224), (0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_name_creates_its_model(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, depth=1)
    assert model.image_size == (int(name.rpartition("_")[2]),) * 2
    assert timm.get_pretrained_cfg(name).input_size == (3, *model.image_size)


WRONG_CALLS = [
    pytest.param(("msvit_huge_patch16_32_224",), {}, ValueError, r"name: expected msvit_\{tiny,small,base", id="size"),
    pytest.param(("msvit_tiny_patch16_64_224",), {}, ValueError, "got 'msvit_tiny_patch16_64_224'", id="scales"),
    pytest.param(("vit_tiny_patch16_224",), {}, ValueError, "name: expected msvit_", id="timm-name"),
    pytest.param(("msvit_tiny_patch16_32_230",), {}, ValueError, "use img_size=224 or 256", id="image-size"),
    pytest.param((TINY,), {"img_size": 72}, ValueError, "images of 72 pixels and coarse=32", id="img_size"),
    pytest.param((TINY,), {"in_chans": 1}, ValueError, "in_chans=1; expected 3", id="in_chans"),
    pytest.param((TINY,), {"attn_drop_rate": 0.1}, ValueError, "attn_drop_rate=0.1", id="attention-dropout"),
    pytest.param((TINY,), {"no_such": 1}, TypeError, "no_such", id="unknown-argument"),
    pytest.param((TINY,), {"gate": "best"}, ValueError, "gate: expected one of", id="gate"),
    pytest.param((TINY,), {"policy": Budget(17)}, ValueError, r"4 \(all coarse\) to 16 \(all fine\)", id="budget"),
    pytest.param((TINY,), {"token_mode": "nested"}, ValueError, "token_mode: expected one of packed", id="token-mode"),
    pytest.param((TINY,), {"checkpoint_path": "/no/such.pth"}, FileNotFoundError, "/no/such.pth", id="checkpoint"),
    pytest.param(
        ("msvit_tiny_patch8_16_224",),
        {"pretrained": True},
        ValueError,
        "pretrained: timm has no weights for a vit_tiny_patch8; use checkpoint_path",
        id="no-weights",
    ),
]


@pytest.mark.parametrize(("args", "kwargs", "error", "words"), WRONG_CALLS)
def test_wrong_call(args: tuple, kwargs: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        msvit.create_model(*args, **kwargs)


def test_default_model_is_the_paper_s() -> None:
    with torch.device("meta"):
        model = msvit.create_model("msvit_small_patch16_32_224")
    assert isinstance(model.gate, msvit.gates.MLPGate)
    assert model.policy == msvit.policies.Threshold(0.5)
    assert model.token_mode == "packed"
    assert (model.num_prefix_tokens, model.embed_dim, len(model.blocks)) == (1, 384, 12)
