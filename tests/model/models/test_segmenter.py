"""Segmenter: packed, replicated and masked tokens against an oracle; sizes, gradients, compilation, wrong calls."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import msvit
from msvit.models import Segmenter
from msvit.models.vit import TOKEN_MODES
from msvit.policies import Budget
from tests.model.model_helpers import (
    FP64_TOLERANCE,
    LOGITS_TOLERANCE,
    POOL_IDS,
    POOLS,
    images_of,
    mask_of,
    randomise,
    small_vit,
)
from tests.model.reducer_helpers import EverySecond

CLASSES = 5
# fp32. Only the order of sums differs. The logits are layer-normalised, so of size 1.
SAME = 1e-5

MASKS = [
    pytest.param(lambda shape: mask_of((3, *shape)), id="random"),
    pytest.param(lambda shape: mask_of((1, *shape)), id="batch-1"),
    pytest.param(lambda shape: torch.stack([torch.zeros(shape), torch.ones(shape)]).bool(), id="coarse-beside-fine"),
    pytest.param(lambda shape: torch.zeros(2, *shape).bool(), id="all-coarse"),
    pytest.param(lambda shape: torch.ones(2, *shape).bool(), id="all-fine"),
]


def small_segmenter(decoder: str = "mask", **vit: Any) -> Segmenter:
    """Two blocks of two heads and a decoder of two blocks, for images of 48 pixels: patches of 8, regions of 16."""
    encoder = msvit.from_timm(small_vit(**vit), 16, gate="entropy")
    model = Segmenter(encoder, CLASSES, decoder)
    randomise(model.decoder)
    return model.eval()


def pixels(batch: int, height: int, width: int) -> Tensor:
    return images_of(max(height, width), batch)[:, :, :height, :width]


@torch.no_grad()
@pytest.mark.parametrize("size", [(48, 48), (32, 80), (41, 50)], ids=["own", "wide", "padded"])
@pytest.mark.parametrize("make_mask", MASKS)
def test_every_way_equals_the_oracle(make_mask, size: tuple[int, int]) -> None:
    model = small_segmenter().double()
    mask = make_mask([-(-side // 16) for side in size])
    images = pixels(len(mask), *size).double()
    expected = torch.stack([oracle(model, image, fine) for image, fine in zip(images, mask, strict=True)])
    assert expected.std() > 0.1
    for model.token_mode in TOKEN_MODES:
        for model.decode in ("packed", "grid"):
            found = model(images, mask)
            assert found.shape == (len(mask), CLASSES, *size)
            torch.testing.assert_close(found, expected, atol=FP64_TOLERANCE, rtol=0)


def oracle(model: Segmenter, image: Tensor, fine: Tensor) -> Tensor:
    """Logits [classes, H, W] of one image, from the parameters; coarse tokens are replicated before the decoder."""
    encoder, decoder = model.encoder, model.decoder
    height, width = (-(-side // 16) * 16 for side in image.shape[1:])
    padded = F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
    grid_size = (height // 8, width // 8)
    prefix, positions = encoder.pos_embed[0, :1], encoder.pos_embed[0, 1:].T.view(1, -1, 6, 6)
    positions = F.interpolate(positions, size=grid_size, mode=encoder.pos_embed_interpolation, align_corners=False)
    tokens = {}
    for scale, pool in (("fine", 1), ("coarse", 2)):
        patches = encoder.patch_embed.proj(F.avg_pool2d(padded[None], pool)) + F.avg_pool2d(positions, pool)
        tokens[scale] = patches[0].permute(1, 2, 0)
    rows, places = [encoder.cls_token[0] + prefix], []
    for y in range(height // 16):
        for x in range(width // 16):
            if fine[y, x]:
                cells = [(2 * y + i, 2 * x + j) for i in (0, 1) for j in (0, 1)]
                rows += [tokens["fine"][cell][None] for cell in cells]
                places += [[cell] for cell in cells]
            else:
                rows.append(tokens["coarse"][y, x][None])
                places.append([(2 * y + i, 2 * x + j) for i in (0, 1) for j in (0, 1)])
    x = torch.cat(rows)
    for block in encoder.blocks:
        x = plain_block(block, x)
    x = encoder.norm(x)[1:]
    replicated = x.new_empty(*grid_size, x.shape[1])
    for row, cells in zip(x, places, strict=True):
        for cell in cells:
            replicated[cell] = row
    x = torch.cat([decoder.proj_dec(replicated.flatten(0, 1)), decoder.cls_emb[0]])
    for block in decoder.blocks:
        x = plain_block(block, x)
    x = decoder.decoder_norm(x)
    patches, classes = x[:-CLASSES] @ decoder.proj_patch, x[-CLASSES:] @ decoder.proj_classes
    patches, classes = (each / each.norm(dim=1, keepdim=True) for each in (patches, classes))
    masks = decoder.mask_norm(patches @ classes.T).T.view(1, CLASSES, *grid_size)
    masks = F.interpolate(masks, size=(height, width), mode="bilinear", align_corners=False)
    return masks[0, :, : image.shape[1], : image.shape[2]]


def plain_block(block: nn.Module, x: Tensor) -> Tensor:
    attn = block.attn
    q, k, v = attn.qkv(block.norm1(x)).view(len(x), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
    scores = (q @ k.mT * attn.head_dim**-0.5).softmax(-1)
    x = x + attn.proj((scores @ v).transpose(0, 1).flatten(1))
    return x + block.mlp(block.norm2(x))


@torch.no_grad()
@pytest.mark.parametrize("kwargs", POOLS, ids=POOL_IDS)
@pytest.mark.parametrize("decoder", ["mask", "linear"])
def test_packed_equals_grid_for_every_tower(decoder: str, kwargs: dict) -> None:
    model = small_segmenter(decoder, **kwargs)
    images, mask = images_of(48, 3), mask_of((3, 3, 3))
    logits = {}
    for model.decode in ("packed", "grid"):
        logits[model.decode] = model.forward_grid(images, mask)
    assert logits["packed"].shape == (3, CLASSES, 6, 6)
    assert logits["packed"].std() > 0.1
    torch.testing.assert_close(logits["packed"], logits["grid"], atol=SAME, rtol=0)


@pytest.mark.parametrize("decoder", ["mask", "linear"])
def test_gradients_of_packed_and_grid_agree(decoder: str) -> None:
    model = small_segmenter(decoder).double()
    images, mask = images_of(48, 2).double(), mask_of((2, 3, 3))
    gradients = []
    for model.decode in ("packed", "grid"):
        model.zero_grad()
        F.cross_entropy(model(images, mask), torch.arange(2 * 48 * 48).view(2, 48, 48) % CLASSES).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    assert all(gradient.abs().max() > 0 for name, gradient in gradients[0].items() if "qkv.bias" not in name)
    torch.testing.assert_close(gradients[0], gradients[1], atol=FP64_TOLERANCE, rtol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_cached_positions_follow_the_parameters(interpolation: str) -> None:
    encoder = small_segmenter().encoder
    encoder.pos_embed_interpolation = interpolation
    grid = encoder.pos_embed[:, 1:].mT.unflatten(2, (6, 6))
    scales = encoder.scales_of(torch.zeros(1, 3, 32, 64))
    assert encoder.scales_of(torch.zeros(1, 3, 48, 48)) is encoder.scales
    for _ in range(2):  # the second time from memory
        for change in (lambda: None, lambda: encoder.pos_embed.data.mul_(2)):  # `.data` has no version counter
            change()
            expected = F.interpolate(grid, size=(4, 8), mode=interpolation, align_corners=False)[0].flatten(1).mT
            with torch.no_grad():
                found = encoder.position_table(scales)[-32:]
            torch.testing.assert_close(found, expected)
    encoder.position_table(scales).sum().backward()
    assert encoder.pos_embed.grad.abs().min() > 0


def test_the_gate_is_frozen_until_it_is_not() -> None:
    model = Segmenter(msvit.from_timm(small_vit(), 16, gate="mlp"), CLASSES).train()
    assert model.encoder.training
    assert not model.gate.training
    assert not any(parameter.requires_grad for parameter in model.gate.parameters())
    model.gate.requires_grad_()
    model.train()
    assert model.gate.training
    model(images_of(48)).square().mean().backward()
    assert model.gate.fc1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("gate", ["mlp", "radial", "random", "entropy", "fine", "coarse"])
def test_any_gate_takes_any_size(gate: str) -> None:
    model = Segmenter(msvit.from_timm(small_vit(), 16, gate=gate, mean=[0.5] * 3, std=[0.5] * 3), CLASSES).eval()
    images = (40 * pixels(2, 41, 70) + 128).clamp(0, 255).byte()
    with torch.no_grad():
        found = model(images)
        floats = model((images.float() / 255 - 0.5) / 0.5) if gate != "random" else found
    assert found.shape == (2, CLASSES, 41, 70)
    torch.testing.assert_close(found, floats, atol=LOGITS_TOLERANCE, rtol=0)


def test_compiles_whole_with_a_budget() -> None:
    model = Segmenter(msvit.from_timm(small_vit(depth=1), 16, gate="entropy"), CLASSES, decoder_depth=1).eval()
    model.policy = Budget(20)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for images in (pixels(2, 41, 70), pixels(2, 32, 80)):  # padded; the second size makes sizes symbolic
            torch.testing.assert_close(compiled(images), model(images), atol=LOGITS_TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("decode", ["packed", "grid"])
@pytest.mark.parametrize("decoder", ["mask", "linear"])
def test_no_image(decoder: str, decode: str) -> None:
    model = small_segmenter(decoder)
    model.decode = decode
    assert model(torch.empty(0, 3, 40, 48)).shape == (0, CLASSES, 40, 48)


def test_copies() -> None:
    model = small_segmenter()
    images = pixels(2, 30, 70)
    with torch.no_grad():
        expected = model(images)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other(images), expected)


def test_created_by_name() -> None:
    model = msvit.create_model("msvit_seg_tiny_linear_patch8_16_64", num_classes=7, depth=2, gate="fine")
    assert model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).shape == (1, 7, 64, 64)
    assert {norm.eps for norm in model.modules() if isinstance(norm, nn.LayerNorm)} == {1e-5}
    assert model.encoder.pos_embed_interpolation == "bilinear"
    assert not any(name.startswith("encoder.head") for name in model.state_dict())
    assert model.no_weight_decay() == {"encoder.cls_token", "encoder.pos_embed"}


WRONG = [
    pytest.param(lambda m: Segmenter(small_vit(), 5), TypeError, "encoder: .*from_timm.*VisionTransformer", id="timm"),
    pytest.param(lambda m: Segmenter(m.encoder, 0), ValueError, "num_classes: .* got 0", id="classes"),
    pytest.param(lambda m: Segmenter(m.encoder, 5, "unet"), ValueError, "decoder: .*mask, linear.*unet", id="decoder"),
    pytest.param(lambda m: Segmenter(m.encoder, 5, decode="x"), ValueError, "decode: .*packed, grid.*'x'", id="decode"),
    pytest.param(lambda m: Segmenter(m.encoder, 5, dropout=1), ValueError, r"dropout: .*\[0, 1\), got 1", id="dropout"),
    pytest.param(lambda m: m(torch.zeros(3, 48, 48)), ValueError, r"images: .*\[batch, 3, H, W\]", id="no-batch"),
    pytest.param(lambda m: m(torch.zeros(1, 3, 48, 0)), ValueError, "images: .*multiples of 16", id="empty"),
    pytest.param(lambda m: m("image"), TypeError, "images: expected a tensor, got str", id="text"),
    pytest.param(
        lambda m: m(torch.zeros(1, 3, 50, 48), torch.ones(1, 3, 3).bool()),
        ValueError,
        r"fine_mask: expected shape \[1, 4, 3\]",
        id="mask",
    ),
    pytest.param(
        lambda m: m(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)), ValueError, "no mean and std, got uint8", id="uint8"
    ),
    pytest.param(
        lambda m: msvit.create_model("msvit_seg_tiny_unet_patch16_32_512"),
        ValueError,
        "name: expected msvit_seg_.*got 'msvit_seg_tiny_unet",
        id="name",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG)
def test_wrong_call(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(small_segmenter())


def test_reducers_are_refused() -> None:
    model = small_segmenter()
    model.encoder.reducers = {1: EverySecond("before_block")}
    with pytest.raises(ValueError, match=r"encoder: expected no reducers.*blocks 1"):
        model(images_of(48))
