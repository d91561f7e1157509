"""Pooling of the tokens of each image: class token, mean, or timm's attention pooling."""

from timm.layers import AttentionPoolLatent
from torch import Tensor

from msvit.tokens.sequences import Sequences


def attention_pool(pool: AttentionPoolLatent, x: Tensor, sequences: Sequences, with_prefix: bool) -> Tensor:
    """Pools tokens like timm's `AttentionPoolLatent`, with one latent query per image.

    Args:
        pool: timm's attention pooling module.
        x: [rows, dim].
        sequences: layout of the rows.
        with_prefix: whether to attend to prefix tokens.

    Returns:
        [batch, dim].
    """
    heads = (pool.num_heads, pool.head_dim)
    q = pool.q(pool.latent[0]).view(1, *heads)
    k, v = pool.kv(x).view(x.shape[0], 2, *heads).unbind(1)
    q, k = pool.q_norm(q).to(v.dtype), pool.k_norm(k).to(v.dtype)
    q = q.expand(sequences.batch, -1, -1)
    out = pool.proj_drop(pool.proj(sequences.attend_pool(q, k, v, pool.scale, with_prefix).flatten(1)))
    if pool.mlp is not None:
        out = out + pool.mlp(pool.norm(out))
    return out


def pool_tokens(
    x: Tensor,
    sequences: Sequences,
    pool_type: str,
    attn_pool: AttentionPoolLatent | None,
    num_heads: int,
    with_prefix: bool,
) -> Tensor:
    """Pools the tokens of each image into one vector.

    Args:
        x: [rows, dim].
        sequences: layout of the rows.
        pool_type: kind of pooling: "token", "avg" or "map".
        attn_pool: timm's attention pooling module for "map", None for the others.
        num_heads: number of heads of the model, into which "avg" splits the rows.
        with_prefix: whether to include prefix tokens; "token" ignores it.

    Returns:
        [batch, dim].
    """
    if pool_type == "token":
        return sequences.first(x)
    if pool_type == "avg":
        return sequences.mean(x, num_heads, with_prefix)
    assert attn_pool is not None
    return attention_pool(attn_pool, x, sequences, with_prefix)
