"""The former import path of `msvit.tokens.sequences`."""

from msvit.tokens.sequences import PackedSequences, PaddedSequences, Sequences, softmax_dtype

__all__ = ["PackedSequences", "PaddedSequences", "Sequences", "softmax_dtype"]
