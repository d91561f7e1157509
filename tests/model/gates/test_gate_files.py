"""Gates in files of their own, moved to other models, image sizes and normalisations, and agreement of two gates."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import msvit
from msvit.gates import ConstantGate, EntropyGate, MLPGate, agreement, load_gate, save_gate
from msvit.policies import Budget, Threshold
from tests.model.model_helpers import images_of

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def gate_of(grid_size: tuple[int, int] = (3, 3), seed: int = 0) -> MLPGate:
    torch.manual_seed(seed)
    gate = MLPGate(16, grid_size, hidden=24, temperature=0.7, mean=MEAN, std=STD)
    torch.nn.init.normal_(gate.fc4.weight)
    torch.nn.init.normal_(gate.pos_embed)
    gate.fc4.bias.data.zero_()
    return gate.eval()


def pixels(size: int = 48, batch: int = 4) -> Tensor:
    return ((images_of(size, batch) + 2) * 60).clamp(0, 255).byte()


def test_a_loaded_gate_decides_as_the_saved_one(tmp_path: Path) -> None:
    gate = gate_of()
    save_gate(gate, tmp_path / "gate.safetensors")
    loaded = load_gate(tmp_path / "gate.safetensors")
    assert torch.equal(loaded(pixels()), gate(pixels()))
    assert (loaded.temperature, loaded.coarse, loaded.grid_size, loaded.training) == (0.7, 16, (3, 3), False)
    assert agreement(gate, loaded, pixels()) == 1


def test_to_another_backbone(tmp_path: Path) -> None:
    """Moves a gate between models with different patch sizes and image normalisations."""
    gate = gate_of()
    save_gate(gate, tmp_path / "gate.safetensors")
    other = msvit.create_model(
        "msvit_tiny_patch8_16_48", embed_dim=32, depth=1, num_heads=2, num_classes=3, mean=(0.1, 0.1, 0.1), std=STD
    )
    other.gate = load_gate(tmp_path / "gate.safetensors", other.coarse_grid_size, other.mean, other.std)
    _, layout = other.eval().forward_features(pixels())
    assert torch.equal(layout.fine_mask, gate(pixels()) > 0)
    # Floats arrive normalised for the backbone: the gate must see through that, too.
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (other.mean, other.std))
    floats = (pixels() / 255 - mean) / std
    torch.testing.assert_close(other.gate(floats), gate(pixels()), atol=1e-4, rtol=1e-4)


def test_to_another_image_size(tmp_path: Path) -> None:
    gate = gate_of((3, 3))
    with torch.no_grad():  # a position encoding that grows from left to right
        gate.pos_embed.copy_(torch.linspace(-1, 1, 3).view(1, 1, 3, 1).expand(1, 3, 3, 24).reshape(1, 9, 24))
    save_gate(gate, tmp_path / "gate.safetensors")
    loaded = load_gate(tmp_path / "gate.safetensors", grid_size=(3, 6))
    positions = loaded.pos_embed.detach().view(3, 6, 24)
    assert (positions.diff(dim=1) > 0).all()
    torch.testing.assert_close(positions[0], positions[2])
    image = pixels(96)[:, :, :48]
    assert loaded(image).shape == (4, 3, 6)
    torch.testing.assert_close(gate(image), loaded(image))  # the gate resamples its position encodings itself


def test_agreement_is_the_share_of_equal_decisions() -> None:
    gate, other = gate_of(seed=0), gate_of(seed=1)
    expected = ((gate(pixels()) > 0) == (other(pixels()) > 0)).float().mean().item()
    assert 0 < expected < 1
    assert agreement(gate, other, pixels()) == pytest.approx(expected)
    fine, coarse = ConstantGate(16, fine=True), ConstantGate(16, fine=False)
    assert agreement(fine, coarse, pixels()) == 0
    assert agreement(fine, coarse, pixels(), Threshold(0.99)) == 1
    assert agreement(fine, coarse, pixels(), Budget(18)) == 1, "both take the same number of regions, the first ones"
    assert agreement(gate, EntropyGate(16), pixels()) <= 1


def test_agreement_under_a_budget_depends_on_the_scale_factor() -> None:
    """15 tokens beyond the coarse ones pay for five fine regions of 2 x 2 patches, for one of 3 x 3 or 4 x 4."""

    class Falling(nn.Module):
        """From the first region to the last, times a sign."""

        def __init__(self, sign: float) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, images: Tensor) -> Tensor:
            return self.sign * torch.linspace(1, -1, 9).view(1, 3, 3)

    found = [agreement(Falling(1), Falling(-1), pixels()[:1], Budget(24), scale_factor) for scale_factor in (2, 3, 4)]
    assert found == pytest.approx([1 / 9, 7 / 9, 7 / 9])


def test_agreement_asks_without_noise_and_leaves_the_mode() -> None:
    gate = gate_of().train()
    assert agreement(gate, gate, pixels()) == 1
    assert gate.training


def test_errors(tmp_path: Path) -> None:
    path = tmp_path / "gate.safetensors"
    with pytest.raises(FileNotFoundError, match=r"gate .*no such file"):
        load_gate(path)
    with pytest.raises(TypeError, match="gate: expected an MLPGate, got EntropyGate"):
        save_gate(EntropyGate(16), path)  # type: ignore[arg-type]
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"gate .* cannot be read"):
        load_gate(path)
    msvit.save_checkpoint(gate_of(), path)
    with pytest.raises(ValueError, match=r"cannot be read: expected a gate file; .*save_gate"):
        load_gate(path)
    with pytest.raises(ValueError, match=r"same shape with at least one region, got \[4, 3, 3\] and \[4, 6, 6\]"):
        agreement(gate_of(), ConstantGate(8), pixels())


def write(path: Path, text: str | None = None, state: dict[str, Tensor] | None = None, **about: Any) -> Path:
    """A gate file whose metadata are `text`, or the arguments of a gate with other values for those given."""
    own = {"coarse": 16, "grid_size": [3, 3], "hidden": 24, "temperature": 0.7, "mean": MEAN, "std": STD}
    metadata = {"kind": "msvit gate", "gate": json.dumps(own | about) if text is None else text}
    save_file(gate_of().state_dict() | (state or {}), path, metadata=metadata)
    return path


def test_a_gate_of_a_wide_grid_is_moved(tmp_path: Path) -> None:
    gate = gate_of((2, 4))
    save_gate(gate, tmp_path / "gate.safetensors")
    assert torch.equal(load_gate(tmp_path / "gate.safetensors", [2, 4]).pos_embed, gate.pos_embed)
    assert load_gate(tmp_path / "gate.safetensors", (3, 3)).pos_embed.shape == (1, 9, 24)


DAMAGED = [
    pytest.param({"text": "{"}, "metadata gate: expected a JSON object, got '{'", id="not-json"),
    pytest.param({"text": "[]"}, "metadata gate: expected a JSON object, got '", id="list"),
    pytest.param({"text": "[" * 100_000}, "metadata gate: expected a JSON object, got '", id="nested-list"),
    pytest.param({"text": '{"a":' * 100_000}, "metadata gate: expected a JSON object, got '", id="nested-object"),
    pytest.param({"text": "{}"}, "expected the arguments of a gate, got none for coarse, grid_size", id="empty"),
    pytest.param({"hidden": 10**7}, r"fc1.bias: expected floats of shape \[10000000\], got .* \[24\]", id="hidden"),
    pytest.param({"hidden": 10**400}, "hidden: expected at most 2", id="hidden-huge"),
    pytest.param({"hidden": "24"}, "hidden: expected an int, got str", id="hidden-type"),
    pytest.param({"coarse": 10**6}, r"fc1.weight: expected floats of shape \[24, 3, 1000000, 1000000\]", id="coarse"),
    pytest.param({"coarse": 0}, "coarse: expected at least 1, got 0", id="coarse-zero"),
    pytest.param({"grid_size": [9, 10**9]}, r"pos_embed: expected floats of shape \[1, 9000000000, 24\]", id="grid"),
    pytest.param({"grid_size": [-3, -3]}, "grid_size: expected at least 1, got -3", id="grid-negative"),
    pytest.param({"grid_size": 9}, r"grid_size: expected \(Hc, Wc\), got 9", id="grid-type"),
    pytest.param({"grid_size": [3, 3, 1]}, r"grid_size: expected \(Hc, Wc\), got", id="grid-of-three"),
    pytest.param({"temperature": 0}, "temperature: expected a positive number, got 0", id="temperature"),
    pytest.param({"temperature": float("inf")}, "temperature: expected a finite number", id="temperature-inf"),
    pytest.param(
        {"temperature": 10**400}, "temperature: expected a finite number, got a larger int", id="temperature-huge"
    ),
    pytest.param({"temperature": None}, "temperature: expected a float, got NoneType", id="temperature-type"),
    pytest.param({"std": [0.2, 0, 0.4]}, r"std: expected numbers above zero, got \[0.2, 0, 0.4\]", id="std-zero"),
    pytest.param({"std": None}, "mean, std: expected both or neither", id="no-std"),
    pytest.param({"mean": 0.5}, "mean: expected three values, one per channel, got 0.5", id="mean-type"),
    pytest.param({"mean": [0.5, float("nan"), 0.5]}, "mean: expected finite numbers, got", id="mean-nan"),
    pytest.param({"state": {"fc2.bias": torch.zeros(24).int()}}, "fc2.bias: expected floats of .* got torch", id="int"),
    pytest.param({"state": {"fc5.bias": torch.zeros(24)}}, "fc5.bias: expected no such parameter", id="extra"),
]


@pytest.mark.parametrize(("content", "words"), DAMAGED)
def test_damaged_file(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=rf"gate .*gate\.safetensors cannot be read: {words}"):
        load_gate(write(tmp_path / "gate.safetensors", **content))


WRONG_ARGUMENTS = [
    pytest.param({"mean": MEAN, "std": (0.2, 0.0, 0.4)}, ValueError, "std: expected numbers above zero", id="std-zero"),
    pytest.param({"mean": MEAN}, ValueError, "mean, std: expected both or neither", id="mean-only"),
    pytest.param({"grid_size": (3, 0)}, ValueError, "grid_size: expected at least 1, got 0", id="grid-zero"),
    pytest.param({"grid_size": 3}, TypeError, r"grid_size: expected \(Hc, Wc\), got 3", id="grid-type"),
]


@pytest.mark.parametrize(("kwargs", "error", "words"), WRONG_ARGUMENTS)
def test_wrong_argument(tmp_path: Path, kwargs: dict[str, Any], error: type[Exception], words: str) -> None:
    path = write(tmp_path / "gate.safetensors")
    with pytest.raises(error, match=words):
        load_gate(path, **kwargs)
