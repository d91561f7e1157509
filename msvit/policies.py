"""The public import path of the token policies in `msvit.tokens.policies`."""

from msvit.tokens.policies import Budget, Policy, Selection, Threshold

__all__ = ["Budget", "Policy", "Selection", "Threshold"]
