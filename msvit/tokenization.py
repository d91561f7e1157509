"""The former import path of `msvit.tokens.decision` and `msvit.tokens.embedding`."""

from msvit.tokens.decision import Decision
from msvit.tokens.embedding import (
    Embedding,
    candidate_weight,
    embed_masked,
    embed_packed,
    embed_trimmed,
    normalise,
    position_table,
)

__all__ = [
    "Decision",
    "Embedding",
    "candidate_weight",
    "embed_masked",
    "embed_packed",
    "embed_trimmed",
    "normalise",
    "position_table",
]
