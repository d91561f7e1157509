"""Losses that keep the share of fine regions at a target (section 2.2 of the MSViT paper).

All are modules that map the logits of the gate, [batch, positions], to one number.
"""

from msvit.losses.generalized import GeneralizedBatchShapingLoss, center_distances
from msvit.losses.l0 import L0Loss
from msvit.losses.shaping import BatchShapingLoss

__all__ = ["BatchShapingLoss", "GeneralizedBatchShapingLoss", "L0Loss", "center_distances"]
