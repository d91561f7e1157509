"""The learned gate of the MSViT paper: a 4-layer MLP on the pixels of each region (section 4.1)."""

from collections.abc import Sequence

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from msvit.gates.base import INITIAL_LOGIT, Gate


class MLPGate(Gate):
    """Four linear layers on the 3 * coarse * coarse pixels of each region, with a position encoding after the first.

    In training a logit gets logistic noise (eq. 1): the region is fine if the noisy logit is positive, and the
    gradient is that of `sigmoid(noisy logit / temperature)` (Gumbel-sigmoid with a straight-through estimator). In
    evaluation there is no noise.

    Args:
        coarse: width of a region in pixels.
        grid_size: (Hc, Wc), regions of the images whose position encodings are learned; for images of another size they
            are resampled.
        hidden: width of the three hidden layers.
        temperature: temperature of the Gumbel-sigmoid.
        mean, std: three floats each, as in `Gate`; uint8 images are normalised by them.

    Raises:
        ValueError: `coarse`, a side of `grid_size`, `hidden` or `temperature` is not positive.
    """

    def __init__(
        self,
        coarse: int,
        grid_size: tuple[int, int],
        hidden: int = 96,
        temperature: float = 1.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(coarse, mean, std)
        if min(grid_size) < 1 or hidden < 1:
            raise ValueError(f"grid_size, hidden: expected positive sizes, got {grid_size} and {hidden}")
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        self.grid_size = grid_size
        self.temperature = temperature
        # A convolution whose stride is its kernel is a linear layer on the pixels of each region.
        self.fc1 = nn.Conv2d(3, hidden, coarse, stride=coarse)
        self.pos_embed = nn.Parameter(torch.empty(1, grid_size[0] * grid_size[1], hidden))
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, hidden)
        self.fc4 = nn.Linear(hidden, 1)
        self.act = nn.GELU()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.fc4.weight, std=0.02)
        nn.init.constant_(self.fc4.bias, INITIAL_LOGIT)

    @property
    def macs(self) -> int:
        layers = (self.fc1, self.fc2, self.fc3, self.fc4)
        return sum(layer.weight.numel() for layer in layers) * self.pos_embed.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, Hc, Wc], without noise.

        Raises:
            ValueError: regions do not divide the images, or they are uint8 and the gate has no mean and std.
        """
        batch, height, width = self.regions(images)
        x = self.fc1(self._pixels(images)).flatten(2).mT  # [batch, Nc, hidden]
        x = self.act(x + self._positions((height, width)))
        x = self.fc4(self.act(self.fc3(self.act(self.fc2(x)))))
        return x.view(batch, height, width)

    def sample(self, logits: Tensor) -> Tensor:
        """The logits, with logistic noise in training."""
        if not self.training:
            return logits
        # At 0 and 1 the noise would be infinite.
        uniform = torch.rand(logits.shape, device=logits.device).clamp(1e-6, 1 - 1e-6)
        return logits + torch.logit(uniform).to(logits.dtype)

    def _positions(self, grid_size: tuple[int, int]) -> Tensor:
        """Position encodings [1, Nc, hidden], resampled (bicubic, as timm does) if the images have another size."""
        if grid_size == self.grid_size:
            return self.pos_embed
        resampled: Tensor = resample_abs_pos_embed(
            self.pos_embed, [*grid_size], old_size=[*self.grid_size], num_prefix_tokens=0
        )
        return resampled

    def _pixels(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images.to(self.fc1.weight.dtype)
        if self.mean is None or self.std is None:
            raise ValueError("images: expected floats, since the gate has no mean and std, got uint8")
        return ((images.float() / 255 - self.mean) / self.std).to(self.fc1.weight.dtype)
