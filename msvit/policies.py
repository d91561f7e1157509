"""Token policies under their public name; see `msvit.tokens.policies`."""

from msvit.tokens.policies import Budget, Policy, Selection, Threshold

__all__ = ["Budget", "Policy", "Selection", "Threshold"]
