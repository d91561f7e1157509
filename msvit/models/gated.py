"""The base class of backbones with a gate: it takes the decision and checks the arguments of a call."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from msvit.gates.base import check_normalisation
from msvit.tokens.decision import Decision, check_logits, given_decision, take_decision
from msvit.tokens.embedding import normalise
from msvit.tokens.policies import Policy
from msvit_kernels import Scales


class PropertiesFirst(nn.Module):
    """Base class of modules some of whose properties have a module as their value."""

    def __setattr__(self, name: str, value: Any) -> None:
        # A property takes precedence: nn.Module would register a module under its name and bypass its checks.
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        # As in `__setattr__`: nn.Module would delete the module behind a property.
        if isinstance(getattr(type(self), name, None), property):
            object.__delattr__(self, name)
        else:
            super().__delattr__(name)


class GatedBackbone(PropertiesFirst):
    """Base class of models that take a decision for each image and then classify its tokens.

    A subclass implements `classify`. It registers its own modules first and then sets `gate` and `policy`, so that the
    gate's parameters come after its own.

    Args:
        image_size: (height, width) in pixels.
        scales: the candidate tokens of an image.
        mean, std: three floats each, per-channel mean and standard deviation of pixels in [0, 1], by which uint8 images
            are normalised. If None, uint8 images are refused. Float images must already be normalised.

    Raises:
        ValueError: `mean` and `std` are not three finite numbers each, or a number of `std` is not above zero.

    Attributes:
        gate: module that maps images to logits [batch, Hc, Wc].
        policy: policy that chooses the fine regions from the logits. If it is a module, its parameters belong to the
            model, as `policy.*`, until another policy is set.
        image_size, scales, mean, std: as given.
        dynamic_img_size: whether images may have any size that regions divide; False by default.
        grid_size, coarse_grid_size, scale_factor: fine patches (height, width), regions (height, width) and fine
            patches along one side of a region, all from `scales`.
    """

    gate: nn.Module

    def __init__(
        self,
        image_size: tuple[int, int],
        scales: Scales,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        check_normalisation(mean, std)
        self.image_size = image_size
        self.scales = scales
        self.mean = None if mean is None else tuple(mean)
        self.std = None if std is None else tuple(std)
        self.dynamic_img_size = False

    @property
    def grid_size(self) -> tuple[int, int]:
        """(Hf, Wf), the fine grid."""
        return self.scales.grid_size

    @property
    def coarse_grid_size(self) -> tuple[int, int]:
        """(Hc, Wc), the regions."""
        return self.scales.regions

    @property
    def scale_factor(self) -> int:
        """Fine patches along one side of a region."""
        return self.scales.scale_factor

    @property
    def policy(self) -> Policy:
        """The policy, which chooses the fine regions from the gate's logits."""
        policy: Any = self._modules.get("policy")
        return cast(Policy, self._policy if policy is None else policy)

    @policy.setter
    def policy(self, value: Policy) -> None:
        if isinstance(value, type):
            raise TypeError(f"policy: expected an instance, got the class {value.__name__}")
        if not callable(value) or not hasattr(value, "check"):
            raise TypeError(f"policy: expected a policy such as msvit.policies.Threshold, got {type(value).__name__}")
        value.check(self.scales.num_regions, self.scales.scale_factor)
        self._modules.pop("policy", None)
        self._policy: Policy | None = None
        if isinstance(value, nn.Module):
            # `add_module` refuses the name of a property.
            self._modules["policy"] = value
        else:
            self._policy = value

    def forward(self, images: Tensor, fine_mask: Tensor | None = None, *, gate_logits: Tensor | None = None) -> Tensor:
        """Classifies images.

        Args:
            images: [batch, 3, H, W], normalised floats, or uint8, which is normalised by `mean` and `std`. H and W are
                those of `image_size` or, with `dynamic_img_size`, multiples of the region's width.
            fine_mask: bool [batch, Hc, Wc], fine regions that replace the gate's decision. If None, the gate decides.
            gate_logits: floats [batch, Hc, Wc], result of `self.gate(images)`; if given, the gate is not called, but a
                learned gate still adds its noise in training.

        Returns:
            Logits [batch, num_classes], or features [batch, dim] if the model has no classifier.

        Raises:
            ValueError, TypeError: an argument has the wrong shape, dtype or device; the message names it.
            ValueError: with a learned gate and gradients enabled, the gate's logits for an image contain NaN (checked
                on the CPU, and on a GPU if MSVIT_CHECK=1); the message names the image.

        Note:
            With a learned gate and gradients enabled, attention weighs keys by the straight-through mask (eq. 2, 10),
            so that the gate gets a gradient; in packed mode it comes from active tokens only.
        """
        return self.classify(images, self.decide(images, fine_mask, gate_logits=gate_logits))

    def decide(self, images: Tensor, fine_mask: Tensor | None = None, *, gate_logits: Tensor | None = None) -> Decision:
        """The first half of `forward`: chooses the fine regions by the policy, with noise in training.

        Args and Raises: as in `forward`.

        Returns:
            The decision. With a learned gate and gradients enabled, it has a straight-through weight (eq. 2).
        """
        self.check_pixels(images)
        scales = self.scales_of(images)
        if fine_mask is not None:
            return given_decision(fine_mask, images, scales)
        logits = self.gate(images) if gate_logits is None else gate_logits
        name = "gate_logits" if gate_logits is not None else "result of the gate"
        check_logits(name, logits, images, scales)
        return take_decision(self.gate, self.policy, logits, scales)

    def classify(self, images: Tensor, decision: Decision) -> Tensor:
        """The second half of `forward`: logits [batch, num_classes] for a decision of `decide`."""
        raise NotImplementedError

    @property
    def region_width(self) -> int:
        """Width of a region in pixels."""
        return self.image_size[0] // self.scales.regions[0]

    def scales_of(self, images: Tensor) -> Scales:
        """The candidate tokens of an image of the size of `images`, [batch, 3, H, W].

        Raises:
            ValueError: the model does not take images of that size.
        """
        height, width = images.shape[2:]
        if (height, width) == self.image_size:
            return self.scales
        side = self.region_width
        if not self.dynamic_img_size:
            raise ValueError(f"images: expected shape [batch, 3, {self._size_text()}], got {[*images.shape]}")
        if height % side or width % side or not (height and width):
            raise ValueError(f"images: expected a height and width that are multiples of {side}, got {[*images.shape]}")
        return replace(self.scales, regions=(height // side, width // side))

    def check_pixels(self, images: Any) -> None:
        """Raises TypeError or ValueError unless `images` are pixels [batch, 3, H, W] of any size."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images: expected a tensor, got {type(images).__name__}")
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected shape [batch, 3, {self._size_text()}], got {[*images.shape]}")
        self.check_dtype("images", images)

    def check_dtype(self, name: str, images: Tensor) -> None:
        """Raises TypeError or ValueError unless `images`, which messages call `name`, are floats or can become them."""
        if images.dtype == torch.uint8 and (self.mean is None or self.std is None):
            raise ValueError(f"{name}: expected floats, since the model has no mean and std, got uint8")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"{name}: expected floats or uint8, got {images.dtype}")

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 images [..., 3, H, W] in fp32, normalised by `mean` and `std`, which are not None."""
        mean, std = (
            images.new_tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (self.mean, self.std) if x is not None
        )
        return normalise(images, mean, std)

    def _size_text(self) -> str:
        return "H, W" if self.dynamic_img_size else f"{self.image_size[0]}, {self.image_size[1]}"
