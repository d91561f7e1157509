"""Multiply-accumulates against the GMACs that the MSViT paper prints (tables 1 and 3)."""

import pytest
import timm
import torch

import msvit
from tests.model.model_helpers import small_vit

# (timm model, image size, patch tokens, GMACs as printed, decimals printed)
PAPER = [
    ("deit_small_patch16_224", 160, 100, 2.27, 2),
    ("deit_small_patch16_224", 192, 144, 3.32, 2),
    ("deit_small_patch16_224", 224, 196, 4.60, 2),
    ("vit_tiny_patch16_224", 160, 100, 0.60, 2),
    ("vit_tiny_patch16_224", 192, 144, 0.89, 2),
    ("vit_tiny_patch16_224", 224, 196, 1.25, 2),
    ("vit_small_patch16_224", 128, 64, 1.44, 2),
    ("vit_small_patch16_224", 160, 100, 2.27, 2),
    ("vit_small_patch16_224", 192, 144, 3.32, 2),
    ("vit_small_patch16_224", 224, 196, 4.60, 2),
    ("vit_small_patch16_224", 288, 324, 7.97, 2),
    ("vit_small_patch16_224", 320, 400, 10.11, 2),
    ("vit_small_patch16_224", 384, 576, 15.49, 2),
    ("vit_large_patch16_224", 160, 100, 31.08, 2),
    ("vit_large_patch16_224", 192, 144, 44.9, 1),
]


@pytest.mark.parametrize(("name", "img_size", "num_tokens", "gmacs", "decimals"), PAPER)
def test_equals_the_paper(name: str, img_size: int, num_tokens: int, gmacs: float, decimals: int) -> None:
    with torch.device("meta"):
        vit = timm.create_model(name, img_size=img_size)
    assert vit.patch_embed.num_patches == num_tokens
    assert round(msvit.macs(vit, num_tokens) / 1e9, decimals) == gmacs
    if img_size % 32 == 0:
        assert msvit.macs(msvit.from_timm(vit), num_tokens) == msvit.macs(vit, num_tokens)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"global_pool": "map", "class_token": False}, {"global_pool": "map", "reg_tokens": 2}, {"reg_tokens": 3}],
    ids=["class-token", "attention-pool", "attention-pool-prefix", "registers"],
)
def test_equals_the_operations_that_run(kwargs: dict) -> None:
    """Half of what torch's own counter finds in the timm model, whose attention is written out in products."""
    from torch.utils.flop_counter import FlopCounterMode

    vit = small_vit(**kwargs)
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with FlopCounterMode(display=False) as counter:
        vit(torch.zeros(1, 3, 48, 48))
    assert msvit.macs(vit, 36) == counter.get_total_flops() // 2


def test_gate() -> None:
    model = msvit.create_model("msvit_tiny_patch16_32_224")
    layers = [m for m in model.gate.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert msvit.gate_macs(model) == 49 * sum(layer.weight.numel() for layer in layers) <= 0.017e9
    assert len(layers) == 4
    assert msvit.gate_macs(msvit.from_timm(small_vit(), 16, gate="entropy")) == 0


WRONG_CALLS = [
    pytest.param(lambda: msvit.macs(torch.nn.Linear(1, 1), 4), TypeError, "model: expected.* got Linear", id="model"),
    pytest.param(lambda: msvit.macs(small_vit(), -1), ValueError, "num_tokens: expected 0 or more.* -1", id="tokens"),
    pytest.param(lambda: msvit.gate_macs(small_vit()), TypeError, "whose gate has `macs`", id="no-gate"),
]


@pytest.mark.parametrize(("call", "error", "words"), WRONG_CALLS)
def test_wrong_call(call, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
