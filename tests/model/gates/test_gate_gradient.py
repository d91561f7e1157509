"""The gate's gradient in every token mode against equation 10 written out over all candidates, in fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import msvit
from msvit.models.vit import TOKEN_MODES, MixedScaleVisionTransformer
from msvit.policies import Budget, Threshold
from tests.model.model_helpers import images_of, small_vit

POOLS = [
    pytest.param({}, id="token"),
    pytest.param({"global_pool": "avg"}, id="avg"),
    pytest.param({"global_pool": "avg", "pool_include_prefix": True}, id="avg-prefix"),
    pytest.param({"global_pool": "map", "class_token": False}, id="map"),
    pytest.param({"global_pool": "map", "reg_tokens": 1}, id="map-prefix"),
]


def make_model(kwargs: dict) -> MixedScaleVisionTransformer:
    model = msvit.from_timm(small_vit(**kwargs), 16, gate="mlp").double()
    torch.nn.init.normal_(model.gate.fc4.weight, std=0.3)
    model.gate.fc4.bias.data.zero_()
    return model.eval()


def all_candidates(model: MixedScaleVisionTransformer, images: Tensor) -> Tensor:
    """[batch, num_prefix + Nc + Nf, dim], by timm's own patch embedding."""
    coarse = F.conv2d(F.avg_pool2d(images, 2), model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8)
    patches = torch.cat([coarse.flatten(2), model.patch_embed.proj(images).flatten(2)], dim=2).mT
    table = model.position_table()
    prefix = table[: model.num_prefix_tokens].expand(len(images), -1, -1)
    return torch.cat([prefix, patches + table[model.num_prefix_tokens :]], dim=1)


def weighted_attention(q: Tensor, k: Tensor, v: Tensor, weight: Tensor, scale: float) -> Tensor:
    """Equation 10. q, k, v: [batch, heads, n, head_dim]; weight: [batch, n]."""
    scores = torch.exp(scale * q @ k.mT) * weight[:, None, None, :]
    return scores / scores.sum(-1, keepdim=True) @ v


def logits_by_hand(model: MixedScaleVisionTransformer, images: Tensor, weight: Tensor) -> Tensor:
    """The masked model of appendix F.1, for key weights of all candidates [batch, n]."""
    x = all_candidates(model, images)
    batch, length, dim = x.shape
    for block in model.blocks:
        qkv = block.attn.qkv(block.norm1(x)).view(batch, length, 3, 2, dim // 2).permute(2, 0, 3, 1, 4)
        attended = weighted_attention(*qkv, weight, block.attn.scale).transpose(1, 2).flatten(2)
        x = x + block.attn.proj(attended)
        x = x + block.mlp(block.norm2(x))
    x = model.norm(x)
    if not model.pool_include_prefix:
        prefix = weight[:, : model.num_prefix_tokens]
        weight = torch.cat([torch.zeros_like(prefix), weight[:, model.num_prefix_tokens :]], dim=1)
    return model.head(model.fc_norm(pooled_by_hand(model, x, weight)))


def pooled_by_hand(model: MixedScaleVisionTransformer, x: Tensor, weight: Tensor) -> Tensor:
    if model.global_pool == "token":
        return x[:, 0]
    if model.global_pool == "avg":
        return (x * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
    pool = model.attn_pool
    k, v = pool.kv(x).view(*x.shape[:2], 2, 2, -1).permute(2, 0, 3, 1, 4)
    q = pool.q(pool.latent).view(1, 1, 2, -1).transpose(1, 2).expand(len(x), -1, -1, -1)
    out = pool.proj(weighted_attention(q, k, v, weight, pool.scale).transpose(1, 2).flatten(2))
    return (out + pool.mlp(pool.norm(out)))[:, 0]


def straight_through(model: MixedScaleVisionTransformer, logits: Tensor) -> Tensor:
    """Weights of all candidates by equations 2 and 3: [batch, n], 0 or 1 with the gradient of the soft gate."""
    soft = logits.sigmoid()
    fine = model.policy(logits.detach(), 2).fine_mask.double() + soft - soft.detach()
    prefix = fine.new_ones(len(fine), model.num_prefix_tokens)
    cells = fine.repeat_interleave(2, 1).repeat_interleave(2, 2)
    return torch.cat([prefix, 1 - fine.flatten(1), cells.flatten(1)], dim=1)


def kept_candidates(weight: Tensor, token_mode: str) -> Tensor:
    """Candidates that exist in that mode, and so send a gradient to the gate (appendix F): bool [batch, n]."""
    active = weight.detach() > 0.5
    if token_mode == "masked":
        return torch.ones_like(active)
    if token_mode == "packed":
        return active
    missing = active.sum(1).max() - active.sum(1)
    return active | (~active & ((~active).cumsum(1) <= missing[:, None]))


def gradients(model: MixedScaleVisionTransformer, logits: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    (logits * torch.linspace(-1, 2, logits.numel()).view_as(logits)).sum().backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("token_mode", TOKEN_MODES)
@pytest.mark.parametrize("kwargs", POOLS)
@pytest.mark.parametrize("policy", [Threshold(0.5), Budget(20)], ids=["threshold", "budget"])
def test_gradients_equal_the_formula(token_mode: str, kwargs: dict, policy: Threshold | Budget) -> None:
    model = make_model(kwargs)
    model.token_mode, model.policy = token_mode, policy
    images = images_of(48, batch=3).double()

    weight = straight_through(model, model.gate(images))
    kept = kept_candidates(weight, token_mode)
    expected_logits = logits_by_hand(model, images, torch.where(kept, weight, weight.detach()))
    expected = gradients(model, expected_logits)
    logits = model(images)
    torch.testing.assert_close(logits, expected_logits, atol=1e-9, rtol=1e-6)
    torch.testing.assert_close(gradients(model, logits), expected, atol=1e-7, rtol=1e-5)
    assert expected["gate.fc1.weight"].abs().max() > 1e-6


@pytest.mark.parametrize("token_mode", TOKEN_MODES)
@pytest.mark.parametrize("kwargs", POOLS)
def test_gradient_through_the_output_mask_alone(token_mode: str, kwargs: dict) -> None:
    """Without blocks, the gate affects only the pooling of tokens, and has no effect on a class token."""
    model = make_model(kwargs)
    model.token_mode, model.blocks = token_mode, torch.nn.ModuleList()
    images = images_of(48, batch=3).double()
    weight = straight_through(model, model.gate(images))
    kept = kept_candidates(weight, token_mode)
    expected = gradients(model, logits_by_hand(model, images, torch.where(kept, weight, weight.detach())))
    found = gradients(model, model(images))["gate.fc1.weight"]
    if model.global_pool == "token":
        assert found is None or not found.any()
    else:
        assert found is not None
        assert found.abs().max() > 1e-6
        torch.testing.assert_close(found, expected["gate.fc1.weight"], atol=1e-9, rtol=1e-6)


def test_masked_mode_lets_a_region_feel_the_scale_that_it_did_not_take() -> None:
    """Packed mode leaves this gradient out: the gradients differ, the logits do not."""
    model = make_model({})
    images = images_of(48).double()
    found = {}
    for model.token_mode in ("masked", "packed"):
        logits = model(images)
        found[model.token_mode] = (logits.detach(), gradients(model, logits)["gate.fc1.weight"])
    torch.testing.assert_close(found["masked"][0], found["packed"][0], atol=1e-9, rtol=1e-6)
    assert not torch.allclose(found["masked"][1], found["packed"][1], rtol=0.1)


@pytest.mark.parametrize("token_mode", TOKEN_MODES)
def test_training_decides_by_the_noisy_gate(token_mode: str) -> None:
    """In training the mask is a sample, and the gradient is that of the sigmoid of the same noisy logits (eq. 1, 2)."""
    model = make_model({}).train()
    model.token_mode = token_mode
    model.gate.temperature = 0.5
    images = images_of(48, batch=3).double()
    torch.manual_seed(7)
    noisy = model.gate.sample(model.gate(images))
    mask = noisy > 0
    assert not torch.equal(mask, model.gate(images) > 0)
    weight = straight_through(model, noisy / 0.5)
    kept = kept_candidates(weight, token_mode)
    expected = gradients(model, logits_by_hand(model, images, torch.where(kept, weight, weight.detach())))
    torch.manual_seed(7)
    torch.testing.assert_close(gradients(model, model(images)), expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("token_mode", TOKEN_MODES)
def test_no_gate_gradient_without_need(token_mode: str) -> None:
    """A given mask, a frozen gate and disabled gradients leave the weighted attention aside."""
    model = make_model({})
    model.token_mode = token_mode
    images = images_of(48).double()
    mask = model.gate(images) > 0
    assert all(grad is None for name, grad in gradients(model, model(images, mask)).items() if "gate." in name)
    with torch.no_grad():
        assert model.decide(images).fine_weight is None
    model.gate.requires_grad_(False)
    assert model.decide(images).fine_weight is None
    assert model.decide(images, mask).fine_weight is None
