"""Reducers (`model.reducers`): steps between or inside blocks that drop, merge or add tokens."""

from msvit.reducers.base import PLACES, Reducer
from msvit.reducers.container import Reducers
from msvit.tokens.sequences import AttentionTerms, PackedSequences, PaddedSequences, Sequences

__all__ = [
    "PLACES",
    "AttentionTerms",
    "PackedSequences",
    "PaddedSequences",
    "Reducer",
    "Reducers",
    "Sequences",
]
