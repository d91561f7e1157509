"""Reducers: steps between or inside blocks that leave tokens out, merge them or add some (`model.reducers`)."""

from msvit.reducers.base import PLACES, Reducer, ReducersOf, checked_reducers
from msvit.tokens.sequences import AttentionTerms, PackedSequences, PaddedSequences, Sequences

__all__ = [
    "PLACES",
    "AttentionTerms",
    "PackedSequences",
    "PaddedSequences",
    "Reducer",
    "ReducersOf",
    "Sequences",
    "checked_reducers",
]
