"""The attributes and methods by which timm's tools and scripts work with a model."""

from collections.abc import Mapping
from typing import Any, cast

from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from msvit.models.gated import GatedBackbone
from msvit.models.support import POOL_TYPES
from msvit_kernels import validation


class TimmInterface(GatedBackbone):
    """Base class of models that adopt the modules of a timm `VisionTransformer`.

    A subclass sets `pretrained_cfg` and the attributes below.
    """

    cls_token: nn.Parameter | None
    attn_pool: AttentionPoolLatent | None
    patch_embed: Any
    embed_dim: int
    num_classes: int
    global_pool: str
    head: nn.Module
    grad_checkpointing: bool

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's description of the weights, with the image size, mean and std of this model, for timm's transforms."""
        own = {"mean": self.mean, "std": self.std}
        return {
            **self._pretrained_cfg,
            "input_size": (3, *self.image_size),
            "test_input_size": None,
            **{name: values for name, values in own.items() if values is not None},
        }

    @pretrained_cfg.setter
    def pretrained_cfg(self, value: Mapping[str, Any]) -> None:
        self._pretrained_cfg = dict(value)

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The old name of `pretrained_cfg` in timm."""
        return self.pretrained_cfg

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Sets whether the backward pass recomputes blocks, which saves the memory of their activations."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The classifier head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier with a new one, and changes the pooling if `global_pool` is given.

        Args:
            num_classes: number of outputs; 0 for no classifier.
            global_pool: "token", "avg" or "map"; None keeps the pooling. As in timm, norms stay where they are.

        Raises:
            TypeError: `num_classes` is not an int.
            ValueError: `num_classes` is negative, or the model cannot pool in that way.
        """
        validation.require_int("num_classes", num_classes, 0)
        if global_pool is not None:
            self._set_pooling(global_pool)
        weight = self.patch_embed.proj.weight
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.embed_dim, num_classes, device=weight.device, dtype=weight.dtype)
        self.head.train(self.training)

    def _set_pooling(self, global_pool: str) -> None:
        able = {"token": self.cls_token is not None, "avg": True, "map": self.attn_pool is not None}
        possible = [name for name in POOL_TYPES if able[name]]
        if global_pool not in possible:
            raise ValueError(f"global_pool: expected one of {', '.join(possible)} for this model, got {global_pool!r}")
        if global_pool != "map":
            self.attn_pool = None
        self.global_pool = global_pool

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters for timm's layer-wise learning rates, as in the timm model.

        The embedding is the first group, each block one more, and the head the last; the gate, a policy with parameters
        and the reducers, which start untrained as the head does, belong to the group of the head.
        """
        groups: dict[str, Any] = VisionTransformer.group_matcher(cast(Any, self), coarse)
        return groups

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that should have no weight decay."""
        names = {"pos_embed", "cls_token", "reg_token", "gate.pos_embed"}
        return names & {name for name, _ in self.named_parameters()}
