"""Checkpoints: round trips, other image sizes and classifiers, damaged files, and writing in one step."""

import errno
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

import msvit
from msvit.models.vit import MixedScaleVisionTransformer
from tests.model.model_helpers import images_of, mask_of, randomise, small_vit


def small_model(seed: int = 0, **kwargs) -> MixedScaleVisionTransformer:
    model = msvit.from_timm(small_vit(**kwargs), 16, gate="mlp")
    return randomise(model, seed)


def test_round_trip(tmp_path: Path) -> None:
    saved, loaded = small_model(seed=1), small_model(seed=2)
    msvit.save_checkpoint(saved, tmp_path / "model.safetensors")
    assert msvit.load_checkpoint(loaded, tmp_path / "model.safetensors") == []
    torch.testing.assert_close(loaded.state_dict(), saved.state_dict(), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "state_dict_ema"])
def test_torch_files_of_training_scripts(tmp_path: Path, wrap: str | None) -> None:
    saved, loaded = small_model(seed=1), small_model(seed=2)
    state = {f"module.{name}": tensor for name, tensor in saved.state_dict().items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, tmp_path / "model.pth")
    assert msvit.load_checkpoint(loaded, tmp_path / "model.pth") == []
    torch.testing.assert_close(loaded.state_dict(), saved.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema"])
@pytest.mark.parametrize("plain", ["state_dict", "model"])
def test_averaged_weights_come_first(tmp_path: Path, averaged: str, plain: str) -> None:
    states = {plain: small_model(seed=1).state_dict(), averaged: small_model(seed=2).state_dict()}
    torch.save(states, tmp_path / "model.pth")
    model = small_model(seed=3)
    msvit.load_checkpoint(model, tmp_path / "model.pth")
    assert model.head.weight.equal(states[averaged]["head.weight"])


def test_timm_checkpoint_leaves_the_gate_alone(tmp_path: Path) -> None:
    vit, model = small_vit(), small_model(seed=2)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    gate = {name: tensor.clone() for name, tensor in model.gate.state_dict().items()}
    untouched = msvit.load_checkpoint(model, tmp_path / "vit.safetensors")
    assert untouched == sorted(f"gate.{name}" for name in gate)
    torch.testing.assert_close(model.gate.state_dict(), gate, rtol=0, atol=0)
    images = images_of(48)
    torch.testing.assert_close(model(images, mask_of((2, 3, 3), 1.0)), vit(images), atol=1e-4, rtol=0)


def test_position_grids_are_resampled_as_timm_does(tmp_path: Path) -> None:
    saved, larger = small_model(seed=1), small_model(img_size=80)
    msvit.save_checkpoint(saved, tmp_path / "model.safetensors")
    assert msvit.load_checkpoint(larger, tmp_path / "model.safetensors") == []
    vit = small_vit()
    vit.load_state_dict(saved.state_dict(), strict=False)
    vit.set_input_size((80, 80))
    torch.testing.assert_close(larger.pos_embed, vit.pos_embed)
    assert larger.gate.pos_embed.shape == (1, 25, 96)
    centre = larger.gate.pos_embed[0, 12]  # an odd grid keeps its middle
    torch.testing.assert_close(centre, saved.gate.pos_embed[0, 4], atol=0.2, rtol=0)


def test_other_classifier_needs_a_word(tmp_path: Path) -> None:
    saved, other = small_model(seed=1), small_model(seed=2, num_classes=3)
    msvit.save_checkpoint(saved, tmp_path / "model.safetensors")
    words = r"head\.bias of shape \[5\], expected \[3\]; load_head=False keeps the model's own"
    with pytest.raises(ValueError, match=words):
        msvit.load_checkpoint(other, tmp_path / "model.safetensors")
    head = other.head.weight.clone()
    untouched = msvit.load_checkpoint(other, tmp_path / "model.safetensors", load_head=False)
    assert untouched == ["head.bias", "head.weight"]
    assert torch.equal(other.head.weight, head)
    assert torch.equal(other.pos_embed, saved.pos_embed)


def test_refused_checkpoint_changes_nothing(tmp_path: Path) -> None:
    model = small_model(seed=1)
    state = small_model(seed=2).state_dict()
    del state["blocks.1.norm2.bias"]
    state["blocks.7.extra"] = torch.zeros(1)
    save_file(state, tmp_path / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    words = r"it lacks blocks\.1\.norm2\.bias; it has blocks\.7\.extra, which the model lacks"
    with pytest.raises(ValueError, match=words):
        msvit.load_checkpoint(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_checkpoint_with_part_of_a_gate(tmp_path: Path) -> None:
    state = small_model().state_dict()
    del state["gate.fc4.bias"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"it lacks gate\.fc4\.bias"):
        msvit.load_checkpoint(small_model(), tmp_path / "model.safetensors")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.9], ids=["empty", "in-the-header", "in-the-tensors"])
def test_truncated_file_is_named(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"model.{suffix}"
    model = small_model()
    if suffix == "pth":
        torch.save(model.state_dict(), path)
    else:
        msvit.save_checkpoint(model, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=rf"model\.{suffix} cannot be read; it is damaged or not a checkpoint"):
        msvit.load_checkpoint(model, path)


def test_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": small_vit()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth cannot be read"):
        msvit.load_checkpoint(small_model(), tmp_path / "model.pth")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}], ids=["list", "no-tensors", "empty"])
def test_file_of_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth: expected (a state dict|tensors by name), got"):
        msvit.load_checkpoint(small_model(), tmp_path / "model.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no_such\.pth: no such file"):
        msvit.load_checkpoint(small_model(), tmp_path / "no_such.pth")


def test_failed_save_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    msvit.save_checkpoint(small_model(seed=1), path)
    old = path.read_bytes()

    def run_out_of_space(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "write_bytes", run_out_of_space)
    with pytest.raises(OSError, match=r"model\.safetensors: cannot be written \(the disk is full\)"):
        msvit.save_checkpoint(small_model(seed=2), path)
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_save_into_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no_folder"):
        msvit.save_checkpoint(small_model(), tmp_path / "no_folder" / "model.safetensors")


def test_saved_file_is_readable_by_others(tmp_path: Path) -> None:
    """A temporary file belongs to its owner alone; the checkpoint gets the permissions of any new file."""
    path = tmp_path / "model.safetensors"
    msvit.save_checkpoint(small_model(), path)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert set(load_file(path)) == set(small_model().state_dict())


@pytest.mark.parametrize("create", ["create_model", "from_timm", "timm"])
def test_timm_weights_through_timm_itself(tmp_path: Path, create: str) -> None:
    """`pretrained=True` is timm's own download; here its configuration points to a file."""
    vit = randomise(VisionTransformer(embed_dim=192, num_heads=3, depth=2, num_classes=1000))
    save_file(vit.state_dict(), tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors"), "custom_load": False}
    kwargs = {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": 4, "depth": 2}
    if create == "create_model":
        model = msvit.create_model("msvit_tiny_patch16_32_224", **kwargs)
    elif create == "timm":
        model = timm.create_model("msvit_tiny_patch16_32_224", **kwargs)
    else:
        model = msvit.from_timm("vit_tiny_patch16_224", **kwargs)
    assert model.num_classes == 4
    for name in ("blocks.1.attn.qkv.weight", "pos_embed", "cls_token", "patch_embed.proj.bias"):
        assert torch.equal(model.state_dict()[name], vit.state_dict()[name]), name


def test_shared_parameters_are_stored_once(tmp_path: Path) -> None:
    """A block that stands at two places, and a buffer that is a part of a parameter."""
    path, saved, apart, shared = tmp_path / "model.safetensors", small_model(1), small_model(2), small_model(3)
    for model in (saved, shared):
        model.blocks[1] = model.blocks[0]
    saved.head.register_buffer("row", saved.head.weight.detach()[1])
    msvit.save_checkpoint(saved, path)
    assert not [name for name in load_file(path) if name.startswith("blocks.1.")]
    del saved.head.row
    for model in (apart, shared):
        model.head.register_buffer("row", torch.zeros(32))
        assert msvit.load_checkpoint(model, path) == []
        assert torch.equal(model.head.row, saved.head.weight[1])
        del model.head.row
        torch.testing.assert_close(model.state_dict(), saved.state_dict(), rtol=0, atol=0)


DAMAGED = [
    pytest.param("{", id="not-json"),
    pytest.param("[]", id="list"),
    pytest.param("null", id="null"),
    pytest.param("[" * 100_000, id="nested"),
    pytest.param('{"head.weight": "tail.weight"}', id="no-such-tensor"),
    pytest.param('{"head.copy": ["head.weight"]}', id="list-of-names"),
    pytest.param('{"head.copy": {}}', id="object"),
    pytest.param('{"head.weight": "head.bias"}', id="stored-tensor"),
]


@pytest.mark.parametrize("text", DAMAGED)
def test_damaged_list_of_shared_parameters(tmp_path: Path, text: str) -> None:
    path, model = tmp_path / "model.safetensors", small_model()
    save_file(model.state_dict(), path, metadata={"msvit_shared": text})
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read.*: metadata msvit_shared: expected "):
        msvit.load_checkpoint(model, path)


def test_gate_of_a_wide_grid(tmp_path: Path) -> None:
    """Only the number of its regions is in the file, so the grid of regions is unknown."""
    wide, coarser = (msvit.from_timm(small_vit(img_size=(32, 64)), coarse, gate="mlp") for coarse in (16, 32))
    msvit.save_checkpoint(wide, tmp_path / "model.safetensors")
    words = r"gate\.pos_embed for 2 regions or for a square number of regions, got 8; .*save_gate stores the grid"
    with pytest.raises(ValueError, match=rf"model\.safetensors does not fit the model: expected {words}"):
        msvit.load_checkpoint(coarser, tmp_path / "model.safetensors")
    assert msvit.load_checkpoint(wide, tmp_path / "model.safetensors") == []
