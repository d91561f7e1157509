"""Checkpoints of Segmenter: files of three repositories and of backbones, other sizes and decoders, refusals."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import msvit
from msvit.models.positions import resample_grid
from tests.model.model_helpers import FP64_TOLERANCE, images_of, randomise, small_vit
from tests.model.models.segmenter_repositories import MMSegmentation, Original
from tests.model.models.test_segmenter_checkpoints import all_fine, oracle, segmenter, settings

REPOSITORIES = [pytest.param(Original, "model", id="original"), pytest.param(MMSegmentation, "state_dict", id="mmseg")]


def write(path: Path, state: dict[str, torch.Tensor], nested: str) -> Path:
    """As training scripts write it: with an optimizer and numbers, strings and lists beside the state dict."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
        meta = {"CLASSES": ("sky", "sea"), "PALETTE": [[1, 2, 3]], "iter": 3}
        torch.save({nested: state, "optimizer": momentum, "n_cls": 5, "meta": meta}, path)
    return path


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(("kind", "nested"), REPOSITORIES)
@torch.no_grad()
def test_files_of_other_repositories(tmp_path: Path, kind: Any, nested: str, suffix: str) -> None:
    reference, model = oracle(kind), segmenter()
    path = write(tmp_path / f"model.{suffix}", reference.state_dict(), nested)
    untouched = msvit.load_checkpoint(model.double(), path)
    assert untouched == sorted(f"encoder.gate.{name}" for name in model.gate.state_dict())
    images = images_of(48).double()
    torch.testing.assert_close(all_fine(model, images), reference(images), rtol=0, atol=FP64_TOLERANCE)


@pytest.mark.parametrize(("kind", "nested"), REPOSITORIES)
@torch.no_grad()
def test_positions_of_another_size(tmp_path: Path, kind: Any, nested: str) -> None:
    """A larger model agrees on images of its own size, for which the repository resamples once too."""
    reference, larger = oracle(kind), segmenter(img_size=64).double()
    msvit.load_checkpoint(larger, write(tmp_path / "model.pth", reference.state_dict(), nested))
    images = images_of(64).double()
    torch.testing.assert_close(all_fine(larger, images), reference(images), rtol=0, atol=FP64_TOLERANCE)


def test_round_trip(tmp_path: Path) -> None:
    saved, loaded, larger = segmenter(), segmenter(), segmenter(img_size=64)
    saved.load_state_dict(oracle(Original).state_dict())
    saved.decoder.mask_norm.eps = 3e-4
    msvit.save_checkpoint(saved, tmp_path / "model.safetensors", {"note": "kept"})
    assert msvit.load_checkpoint(loaded, tmp_path / "model.safetensors") == []
    assert settings(loaded) == settings(saved)
    torch.testing.assert_close(loaded.state_dict(), saved.state_dict(), rtol=0, atol=0)
    msvit.load_checkpoint(larger, tmp_path / "model.safetensors")
    grid = saved.encoder.pos_embed[0, 1:].view(6, 6, -1)
    torch.testing.assert_close(larger.encoder.pos_embed[0, 1:], resample_grid(grid, (8, 8), "bilinear").flatten(0, 1))
    assert larger.gate.pos_embed.shape[1] == 16


@pytest.mark.parametrize("names", ["timm", "msvit", "deit"])
def test_backbone_alone(tmp_path: Path, names: str) -> None:
    """A classifier's checkpoint sets the encoder; its head and, for DeiT, its second head have no use."""
    vit = small_vit(reg_tokens=int(names == "deit"))
    state = dict(vit.state_dict())
    if names == "msvit":
        state = dict(randomise(msvit.from_timm(vit, 16, gate="mlp")).state_dict())
    elif names == "deit":
        state |= {"dist_token": state.pop("reg_token"), "head_dist.weight": state["head.weight"]}
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    model = segmenter(reg_tokens=vit.num_reg_tokens)
    decoder = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    before = settings(model)
    untouched = msvit.load_checkpoint(model, tmp_path / "model.safetensors")
    gate = [] if names == "msvit" else [f"encoder.gate.{name}" for name in model.gate.state_dict()]
    assert untouched == sorted([f"decoder.{name}" for name in decoder] + gate)
    torch.testing.assert_close(model.decoder.state_dict(), decoder, rtol=0, atol=0)
    assert torch.equal(model.encoder.norm.weight, vit.norm.weight)
    assert torch.equal(model.encoder.pos_embed, vit.pos_embed)
    assert settings(model) == before


KEEP = "load_head=False keeps the model's own decoder"
OTHERS = [
    pytest.param({"classes": 3}, rf"it has 5 classes, expected 3; {KEEP}", id="classes"),
    pytest.param({"decoder": "linear"}, rf"it has a mask decoder, expected a linear decoder; {KEEP}", id="decoder"),
    pytest.param({"embed_dim": 64}, "it has width 32, expected 64", id="width"),
    pytest.param({"depth": 1}, r"it has (encoder\.blocks|backbone\.layers)\.1\..* and 9 more, which", id="depth"),
    pytest.param({"patch_size": 4}, "it has patches of 8 x 8 pixels, expected 4 x 4", id="patch"),
]


@pytest.mark.parametrize(("options", "words"), OTHERS)
@pytest.mark.parametrize(("kind", "nested"), REPOSITORIES)
def test_other_model(tmp_path: Path, kind: Any, nested: str, options: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "model.pth", oracle(kind).state_dict(), nested)
    model = segmenter(**options)
    before, own = settings(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"model\.pth does not fit the model: {words}"):
        msvit.load_checkpoint(model, path)
    assert settings(model) == before
    torch.testing.assert_close(model.state_dict(), own, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"classes": 3}, {"decoder": "linear"}], ids=["classes", "decoder"])
@pytest.mark.parametrize(("kind", "nested"), REPOSITORIES)
def test_own_decoder_is_kept(tmp_path: Path, kind: Any, nested: str, options: dict[str, Any]) -> None:
    reference, model = oracle(kind), segmenter(gate="radial", **options)
    decoder = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    path = write(tmp_path / "model.pth", reference.state_dict(), nested)
    assert msvit.load_checkpoint(model, path, load_head=False) == sorted(f"decoder.{name}" for name in decoder)
    torch.testing.assert_close(model.decoder.state_dict(), decoder, rtol=0, atol=0)
    assert settings(model)[1] == kind.interpolation


def test_distilled_checkpoint_needs_a_register(tmp_path: Path) -> None:
    path = write(tmp_path / "model.pth", oracle(Original, distilled=True).state_dict(), "model")
    with pytest.raises(ValueError, match="it has a distillation token; make the encoder with reg_tokens=1"):
        msvit.load_checkpoint(segmenter(), path)
    assert len(msvit.load_checkpoint(segmenter(gate="radial", reg_tokens=1), path)) == 0


def test_grid_of_no_square(tmp_path: Path) -> None:
    state = oracle(Original).state_dict()
    state["encoder.pos_embed"] = torch.zeros(1, 1 + 32, 32)
    words = r"expected encoder\.pos_embed for 37 tokens or for 1 tokens and a square number of patches, got 33"
    with pytest.raises(ValueError, match=words):
        msvit.load_checkpoint(segmenter(), write(tmp_path / "model.pth", state, "model"))


def test_damaged_settings(tmp_path: Path) -> None:
    for text, words in (("[", "cannot be read"), ('{"eps": {}}', "does not fit the model: metadata msvit_settings: ")):
        save_file(dict(segmenter().state_dict()), tmp_path / "model.safetensors", {"msvit_settings": text})
        with pytest.raises(ValueError, match=rf"model\.safetensors {words}"):
            msvit.load_checkpoint(segmenter(), tmp_path / "model.safetensors")


def test_objects_beside_the_tensors(tmp_path: Path) -> None:
    """As in mmengine's files, whose `message_hub` holds objects of its own classes."""
    state = oracle(MMSegmentation).state_dict()
    torch.save({"state_dict": state, "message_hub": argparse.Namespace(step=3)}, tmp_path / "model.pth")
    words = r"cannot be read; it has a argparse\.Namespace beside its tensors.*save its state dict alone in a new one"
    with pytest.raises(ValueError, match=words):
        msvit.load_checkpoint(segmenter(), tmp_path / "model.pth")
    torch.save(torch.load(tmp_path / "model.pth", weights_only=False)["state_dict"], tmp_path / "new.pth")
    msvit.load_checkpoint(segmenter(), tmp_path / "new.pth")
