"""Reducers: steps between or inside blocks that leave tokens out, merge them or add some (`model.reducers`)."""

from msvit.reducers.base import PLACES, Reducer
from msvit.tokens.sequences import AttentionTerms, PackedSequences, PaddedSequences, Sequences

__all__ = [
    "PLACES",
    "AttentionTerms",
    "PackedSequences",
    "PaddedSequences",
    "Reducer",
    "Sequences",
]
