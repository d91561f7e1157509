"""The interface of a reducer, and a function that calls one and checks its results."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from msvit.tokens.sequences import AttentionTerms, PackedSequences, PaddedSequences, Sequences, softmax_dtype
from msvit_kernels import Packing

PLACES = ("before_block", "after_attention")


class Reducer(Protocol):
    """A step that changes the tokens of a batch.

    It is a module or any other callable. The parameters of a module belong to the model, as `reducers.<block>.*`.

    Attributes:
        place: "before_block", or "after_attention", which is between the attention of the block, after its output is
            added, and the MLP. It is read once, when the reducer is set.
    """

    place: str

    def __call__(
        self, tokens: Tensor, sequences: Sequences, attention: AttentionTerms | None
    ) -> tuple[Tensor, Sequences]:
        """Computes the rows for the next step.

        Args:
            tokens: [rows, dim].
            sequences: layout of the rows, with the key weight. `sequences.keep` removes rows in every token mode.
            attention: queries, keys and log-sum-exp of the block's attention; None before a block.

        Returns:
            Tokens [rows', dim], fewer or more, of the same dtype, and their layout. Every image must still begin with
            its prefix tokens.
        """


class PlacedReducer(NamedTuple):
    """A reducer, the block that it belongs to, and its place there."""

    block: int
    place: str
    reducer: Reducer


def apply_reducer(
    placed: PlacedReducer, tokens: Tensor, sequences: Sequences, attention: AttentionTerms | None
) -> tuple[Tensor, Sequences]:
    """Calls a reducer and checks its results. Nothing is read from the device.

    Args and Returns: as in `Reducer.__call__`.

    Raises:
        TypeError, ValueError: a result has the wrong type, shape, dtype or device, or the rows do not match the layout.
    """
    name = f"reducers[{placed.block}]"
    result: Any = placed.reducer(tokens, sequences, attention)
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(f"{name}: expected a pair (tokens, sequences), got {_described(result)}")
    _check_tokens(name, result[0], tokens)
    _check_sequences(name, result[1], sequences, result[0])
    return result


def _check_tokens(name: str, tokens: Any, before: Tensor) -> None:
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{name}: expected a tensor of tokens, got {_described(tokens)}")
    if tokens.ndim != 2 or tokens.shape[1] != before.shape[1]:
        raise ValueError(f"{name}: expected tokens of shape [rows, {before.shape[1]}], got {[*tokens.shape]}")
    if tokens.dtype != before.dtype:
        raise TypeError(f"{name}: expected tokens of dtype {before.dtype}, got {tokens.dtype}")
    if tokens.device != before.device:
        raise ValueError(f"{name}: expected tokens on {before.device}, got {tokens.device}")


def _check_sequences(name: str, sequences: Any, before: Sequences, tokens: Tensor) -> None:
    weight_shape: tuple[int, ...]
    if isinstance(sequences, PackedSequences):
        if not isinstance(sequences.packing, Packing):
            raise TypeError(f"{name}: expected sequences with a Packing, got {_described(sequences.packing)}")
        offsets, weight_shape = sequences.packing.cu_seqlens, (sequences.packing.total_tokens,)
    elif isinstance(sequences, PaddedSequences):
        _check_active(name, sequences.active)
        offsets, weight_shape = sequences.active, tuple(sequences.active.shape)
    else:
        raise TypeError(f"{name}: expected PackedSequences or PaddedSequences, got {_described(sequences)}")
    if offsets.device != tokens.device:
        raise ValueError(f"{name}: expected sequences on {tokens.device}, got {offsets.device}")
    if sequences.batch != before.batch:
        raise ValueError(f"{name}: expected sequences of {before.batch} images, got {sequences.batch}")
    if sequences.num_prefix != before.num_prefix:
        raise ValueError(f"{name}: expected num_prefix {before.num_prefix}, got {sequences.num_prefix}")
    if tokens.shape[0] != sequences.num_rows:
        raise ValueError(
            f"{name}: expected {sequences.num_rows} tokens, as many as the sequences have rows, got {tokens.shape[0]}"
        )
    if sequences.key_weight is not None:
        _check_key_weight(name, sequences.key_weight, weight_shape, tokens)


def _check_active(name: str, active: Any) -> None:
    if not isinstance(active, Tensor) or active.ndim != 2 or active.dtype != torch.bool:
        raise TypeError(f"{name}: expected sequences with `active` bool [batch, k], got {_described(active)}")


def _check_key_weight(name: str, weight: Any, shape: tuple[int, ...], tokens: Tensor) -> None:
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name}: expected a tensor as key_weight, got {_described(weight)}")
    if tuple(weight.shape) != shape:
        raise ValueError(f"{name}: expected a key_weight of shape {[*shape]}, got {[*weight.shape]}")
    if weight.dtype != softmax_dtype(tokens):
        raise TypeError(f"{name}: expected a key_weight of dtype {softmax_dtype(tokens)}, got {weight.dtype}")
    if weight.device != tokens.device:
        raise ValueError(f"{name}: expected a key_weight on {tokens.device}, got {weight.device}")


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {value.dtype} of shape {[*value.shape]}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return type(value).__name__
