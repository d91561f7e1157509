"""Multiply-accumulates, counted as in the tables of the MSViT paper."""

from typing import Any, cast

from torch import nn


def macs(model: nn.Module, num_tokens: int) -> int:
    """Counts the multiply-accumulates of backbone and head for one image of `num_tokens` patch tokens.

    The head of a `Segmenter` is its decoder; `macs(model.encoder, num_tokens)` leaves it out, as the paper's table 4.

    The count includes linear layers, the patch convolution (once per active patch token) and both matrix products of
    attention, with prefix tokens in the sequence. It excludes biases, norms, softmax, activations and the gate (see
    `gate_macs`).

    Args:
        model: an `msvit` model, `Segmenter` included, or a timm `VisionTransformer`.
        num_tokens: number of patch tokens, without prefix tokens.

    Returns:
        Number of MACs, such as 4.60e9 for ViT-S/16 with 196 tokens.

    Raises:
        TypeError: `model` is neither.
        ValueError: `num_tokens` is negative.
        NotImplementedError: the model has reducers, which change the number of tokens between blocks.
    """
    if num_tokens < 0:
        raise ValueError(f"num_tokens: expected 0 or more patch tokens, got {num_tokens}")
    decoder_macs: Any = getattr(model, "decoder_macs", None)
    if decoder_macs is not None:
        return macs(cast(nn.Module, model.encoder), num_tokens) + int(decoder_macs(num_tokens))
    for name in ("patch_embed", "blocks", "head", "num_prefix_tokens"):
        if not hasattr(model, name):
            raise TypeError(f"model: expected an msvit model or a timm VisionTransformer, got {type(model).__name__}")
    if len(reducers := getattr(model, "reducers", ())):
        blocks = ", ".join(map(str, sorted(reducers)))
        raise NotImplementedError(f"model: expected a model without reducers, got reducers at blocks {blocks}")
    vit: Any = model
    length = num_tokens + vit.num_prefix_tokens
    total = num_tokens * vit.patch_embed.proj.weight.numel()
    for block in vit.blocks:
        attn_dim = block.attn.num_heads * block.attn.head_dim
        total += length * _linear_weights(block) + 2 * length * length * attn_dim
    if vit.attn_pool is not None:
        keys = length if vit.pool_include_prefix else num_tokens
        total += _attention_pool_macs(vit.attn_pool, keys)
    return int(total + _linear_weights(vit.head))


def gate_macs(model: nn.Module) -> int:
    """Counts the multiply-accumulates of the gate for one image.

    Args:
        model: an `msvit` model.

    Returns:
        Number of MACs; 0 for a gate without linear layers.

    Raises:
        TypeError: the model has no gate, or its gate has no `macs`.
    """
    count = getattr(getattr(model, "gate", None), "macs", None)
    if count is None:
        raise TypeError(f"model: expected an msvit model whose gate has `macs`, got {type(model).__name__}")
    return int(count)


def _attention_pool_macs(pool: Any, keys: int) -> int:
    kv = pool.kv.weight.numel()
    once = _linear_weights(pool) - kv
    return keys * kv + once + 2 * keys * pool.num_heads * pool.head_dim


def _linear_weights(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))
