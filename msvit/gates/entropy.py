"""A gate without learned parameters: regions whose intensities spread over many histogram bins become fine."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from msvit.gates.base import Gate


class EntropyGate(Gate):
    """Histogram entropy of each region: logit = H - threshold, H = -sum_i p_i log2 p_i in bits.

    p is the histogram, over `bins` equal bins of [0, 1], of the pixel intensities of a region; the intensity is the
    mean of the three channels. H is 0 for a flat region and at most log2(bins). A logit is thus the number of bits by
    which a region exceeds the threshold; under `Budget` only the order matters.

    Args:
        coarse: width of a region in pixels.
        bins: number of bins of the histogram.
        threshold: entropy in bits above which a logit is positive.
        mean, std: three floats each, as in `Gate`; the normalisation of float images is undone before the histogram. If
            None, float images are in [0, 1].

    Raises:
        ValueError: `bins` is below 2, or `threshold` is not in [0, log2(bins)].

    Note:
        Counts are integers, so two runs give the same bits. The logits have no gradient.
    """

    def __init__(
        self,
        coarse: int,
        bins: int = 64,
        threshold: float = 4.0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__(coarse, mean, std)
        if bins < 2:
            raise ValueError(f"bins: expected 2 or more, got {bins}")
        if not 0 <= threshold <= math.log2(bins):
            raise ValueError(f"threshold: expected 0 to {math.log2(bins)} bits, got {threshold}")
        self.bins = bins
        self.threshold = threshold

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, Hc, Wc]."""
        batch, height, width = self.regions(images)
        side = self.coarse
        index = (self._intensity(images) * self.bins).long().clamp_(0, self.bins - 1)  # [batch, H, W]
        # [batch, H, W] -> [batch * Nc, side * side]
        index = index.view(batch, height, side, width, side).transpose(2, 3).reshape(-1, side * side)
        histogram = torch.zeros(len(index), self.bins, device=images.device)
        histogram.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float32))
        entropy = torch.special.entr(histogram / side**2).sum(1) / math.log(2)
        return (entropy - self.threshold).view(batch, height, width)

    def _intensity(self, images: Tensor) -> Tensor:
        """[batch, H, W] in [0, 1]."""
        pixels = images.float()
        if images.dtype == torch.uint8:
            return pixels.mean(1) / 255
        if self.mean is not None and self.std is not None:
            pixels = pixels * self.std + self.mean
        return pixels.mean(1)
