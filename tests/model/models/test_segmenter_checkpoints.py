"""State dicts of Segmenter: those of the original and of mmsegmentation against oracles; its own with its settings."""

import copy
import io
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import msvit
from tests.model.model_helpers import FP64_TOLERANCE, images_of, randomise, small_vit
from tests.model.models.segmenter_repositories import MMSegmentation, Original

CLASSES = 5
SIZES = {"classes": CLASSES, "dim": 32, "side": 6, "patch": 8}
REPOSITORIES = [
    pytest.param(Original, {}, id="original"),
    pytest.param(Original, {"distilled": True}, id="distilled"),
    pytest.param(MMSegmentation, {}, id="mmsegmentation"),
]


def oracle(kind: Any, decoder: str = "mask", **options: Any) -> nn.Module:
    return randomise(kind(decoder, **SIZES, **options)).double()


def segmenter(decoder: str = "mask", classes: int = CLASSES, gate: str = "mlp", **vit: Any) -> msvit.Segmenter:
    """A small model whose settings (1e-6, bicubic) are timm's, for images of 48 pixels with regions of 16."""
    encoder = msvit.from_timm(small_vit(num_classes=0, **vit), 16, gate=gate)
    return randomise(msvit.Segmenter(encoder, classes, decoder), seed=3)


def settings(model: msvit.Segmenter) -> tuple[list[float], str]:
    norms = [module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)]
    return norms, model.encoder.pos_embed_interpolation


def all_fine(model: msvit.Segmenter, images: Tensor) -> Tensor:
    height, width = (side // 16 for side in images.shape[2:])
    return model(images, torch.ones(images.shape[0], height, width, dtype=torch.bool))


@pytest.mark.parametrize("decoder", ["mask", "linear"])
@pytest.mark.parametrize(("kind", "options"), REPOSITORIES)
@torch.no_grad()
def test_other_repositories(kind: Any, options: dict[str, bool], decoder: str) -> None:
    """The epsilon of any one norm, 1e-6 instead of 1e-5, changes results by 5e-8 or more."""
    reference = oracle(kind, decoder, **options)
    model = segmenter(decoder, reg_tokens=int(options.get("distilled", False))).double()
    images = images_of(48).double()
    wide = torch.cat([images, images.flip(2)], dim=3)[..., 16:]
    all_fine(model, wide)  # keeps resampled positions, which must not outlive the load
    gate = {name: tensor.clone() for name, tensor in model.gate.state_dict().items()}
    assert model.load_state_dict(reference.state_dict()) == ([], [])
    torch.testing.assert_close(all_fine(model, images), reference(images), rtol=0, atol=FP64_TOLERANCE)
    torch.testing.assert_close(all_fine(model, wide), reference(wide), rtol=0, atol=FP64_TOLERANCE)
    torch.testing.assert_close(model.gate.state_dict(), gate, rtol=0, atol=0)


def test_epsilon_of_each_part() -> None:
    model = segmenter()
    model.load_state_dict(oracle(MMSegmentation).state_dict())
    names = [name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)]
    assert settings(model) == ([1e-6 if name.startswith("encoder.") else 1e-5 for name in names], "bicubic")
    model.load_state_dict(oracle(Original).state_dict())
    assert settings(model) == ([1e-5] * len(names), "bilinear")


def test_errors_have_the_names_of_the_state_dict() -> None:
    state = oracle(MMSegmentation).state_dict()
    state["backbone.layers.7.ln1.weight"] = state["backbone.ln1.weight"]
    state["decode_head.convs.0.weight"] = state["backbone.ln1.weight"]
    del state["decode_head.mask_norm.bias"]
    result = segmenter().load_state_dict(state, strict=False)
    assert result.missing_keys == ["decoder.mask_norm.bias"]
    assert sorted(result.unexpected_keys) == ["backbone.layers.7.ln1.weight", "decode_head.convs.0.weight"]
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"backbone\.layers\.7\.ln1\.weight"'):
        segmenter().load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"encoder\.dist_token"'):
        segmenter().load_state_dict(oracle(Original, distilled=True).state_dict())


def test_mask_head_of_early_versions() -> None:
    """It has a convolution that it does not use, whose name is that of the linear decoder."""
    state = oracle(MMSegmentation).state_dict()
    state |= {"decode_head.conv_seg.weight": torch.ones(5, 32, 1, 1), "decode_head.conv_seg.bias": torch.ones(5)}
    assert segmenter().load_state_dict(state) == ([], [])


def test_patch_projection_without_bias() -> None:
    """As mmsegmentation makes it since 1.2.0."""
    state, model = oracle(MMSegmentation).state_dict(), segmenter()
    del state["backbone.patch_embed.projection.bias"]
    assert model.load_state_dict(state) == ([], [])
    assert not model.encoder.patch_embed.proj.bias.any()


def through_a_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def wrapped(model: nn.Module) -> nn.Module:
    """As in DistributedDataParallel, whose names begin with "module."."""
    outer = nn.Module()
    outer.module = model
    return outer


@pytest.mark.parametrize("copied", [lambda state: state, through_a_file, copy.deepcopy], ids=["same", "file", "copy"])
@pytest.mark.parametrize("wrap", [lambda model: model, wrapped, copy.deepcopy], ids=["plain", "wrapped", "averaged"])
def test_own_settings(copied: Any, wrap: Any) -> None:
    saved, loaded = segmenter(), segmenter()
    saved.load_state_dict(oracle(Original).state_dict())
    saved.encoder.blocks[1].norm2.eps = 2e-4
    assert saved.state_dict().keys() == dict(saved.named_parameters()).keys()
    outer = wrap(loaded)
    outer.load_state_dict(copied(wrap(saved).state_dict()))
    loaded = getattr(outer, "module", outer)
    assert settings(loaded) == settings(saved) != settings(segmenter())
    torch.testing.assert_close(loaded.state_dict(), saved.state_dict(), rtol=0, atol=0)


def test_settings_without_metadata() -> None:
    """The rules for a plain dict of an own model: a gate proves that it is one, and a part proves nothing."""
    state = dict(segmenter().state_dict())
    for given in (state, {name: state[name] for name in state if name.startswith("decoder.")}):
        model = segmenter()
        model.load_state_dict(given, strict=False)
        assert settings(model) == settings(segmenter())
    model = segmenter(gate="radial")
    model.load_state_dict(dict(segmenter(gate="radial").state_dict()))
    assert settings(model) == ([1e-5] * len(settings(model)[0]), "bilinear")


DAMAGED = [
    pytest.param([], id="list"),
    pytest.param({"eps": {"encoder.norm": "1e-5"}, "pos_embed_interpolation": "bilinear"}, id="text"),
    pytest.param({"eps": {"encoder.norm": float("nan")}, "pos_embed_interpolation": "bilinear"}, id="nan"),
    pytest.param({"eps": {}, "pos_embed_interpolation": "nearest"}, id="interpolation"),
    pytest.param({"eps": {}}, id="missing"),
]


@pytest.mark.parametrize("value", DAMAGED)
def test_damaged_settings(value: object) -> None:
    model = segmenter()
    state = OrderedDict(model.state_dict())
    state._metadata = {"": {"msvit_settings": value}}
    with pytest.raises(ValueError, match="metadata msvit_settings: expected eps between 0 and 1"):
        model.load_state_dict(state)
