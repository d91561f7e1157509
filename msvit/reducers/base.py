"""What a reducer is, and the check of those that a model is given."""

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Protocol

from torch import Tensor

from msvit.tokens.sequences import AttentionTerms, Sequences

PLACES = ("before_block", "after_attention")


class Reducer(Protocol):
    """A step that changes the tokens of a batch.

    It is a module or any other callable. The parameters of a module are those of the model, named
    `reducers.<block>.*`.

    Attributes:
        place: "before_block", or "after_attention": after the attention of the block was added, before its MLP.
    """

    place: str

    def __call__(
        self, tokens: Tensor, sequences: Sequences, attention: AttentionTerms | None
    ) -> tuple[Tensor, Sequences]:
        """Returns the rows that the next step gets.

        Args:
            tokens: [rows, dim].
            sequences: where they lie, with the key weight. `sequences.keep` leaves rows out in every token mode.
            attention: what the attention of the block was made of; None before a block.

        Returns:
            tokens [rows', dim], fewer or more, and where those lie, prefix tokens first in each image.
        """


def checked_reducers(reducers: Mapping[int, Reducer], num_blocks: int) -> dict[int, Reducer]:
    """A copy, if a model of `num_blocks` blocks can use these reducers.

    Raises:
        TypeError: not a mapping from ints to callables.
        ValueError: a block that the model lacks, or a place that is not in `PLACES`.
    """
    if not isinstance(reducers, Mapping):
        raise TypeError(f"reducers: expected a dict from block to reducer, got {type(reducers).__name__}")
    for block, reducer in reducers.items():
        if isinstance(block, bool) or not isinstance(block, int):
            raise TypeError(f"reducers: expected numbers of blocks, got {block!r}")
        if not 0 <= block < num_blocks:
            raise ValueError(f"reducers: expected blocks from 0 to {num_blocks - 1}, got {block}")
        if not callable(reducer):
            raise TypeError(f"reducers[{block}]: expected a callable, got {type(reducer).__name__}")
        place = getattr(reducer, "place", None)
        if place not in PLACES:
            raise ValueError(f"reducers[{block}].place: expected one of {', '.join(PLACES)}, got {place!r}")
    return dict(reducers)


class ReducersOf(MutableMapping[int, Reducer]):
    """`model.reducers` to read and to change: every change goes through the checks of the model."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getitem__(self, block: int) -> Reducer:
        reducer: Reducer = self._model._reducers[block]
        return reducer

    def __setitem__(self, block: int, reducer: Reducer) -> None:
        self._model.reducers = {**self, block: reducer}

    def __delitem__(self, block: int) -> None:
        rest = dict(self)
        del rest[block]
        self._model.reducers = rest

    def __iter__(self) -> Iterator[int]:
        return iter(self._model._reducers)

    def __len__(self) -> int:
        return len(self._model._reducers)

    def __repr__(self) -> str:
        return repr(dict(self))
