"""Segmenter: a mixed-scale ViT whose tokens a decoder turns into a class for each pixel."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from msvit.models.decoders import DECODERS, Decoder, LinearDecoder, MaskTransformer
from msvit.models.gated import PropertiesFirst
from msvit.models.prediction import MAX_TOKENS, predict
from msvit.models.segmenter_checkpoints import SegmenterCheckpoints
from msvit.models.vit import MixedScaleVisionTransformer
from msvit.tokens.decision import Decision
from msvit.tokens.policies import Policy
from msvit_kernels import MixedScaleLayout, Scales, unpack_to_grid, validation

DECODE = ("packed", "grid")


class Segmenter(SegmenterCheckpoints, PropertiesFirst):
    """Semantic segmentation with mixed-scale tokens (section 4.2.1 of the MSViT paper; Segmenter, arXiv 2105.05633).

    The encoder, a mixed-scale ViT, becomes part of the model: it loses its classifier, takes images of any size, and
    its gate is frozen, in evaluation mode. `model.gate.requires_grad_()` makes the gate learn.

    State dicts of the original repository and of mmsegmentation load too, with the epsilon of their norms and their
    interpolation of position encodings (docs/segmentation.md).

    Args:
        encoder: result of `msvit.create_model` or `msvit.from_timm`.
        num_classes: number of classes.
        decoder: "mask", a transformer over tokens and class embeddings, or "linear", a layer on each token.
        decode: "packed" decodes packed tokens, "grid" replicates coarse tokens first, as in the paper. Both give the
            same logits without dropout; packed is faster.
        decoder_depth: number of blocks of a mask decoder.
        dropout: dropout rate of a mask decoder, in [0, 1).
        drop_path: stochastic depth rate of a mask decoder, in [0, 1).

    Attributes:
        encoder, decoder: the two parts.
        num_classes, decode: as given; `decode` is settable.
        gate, policy, token_mode: those of the encoder, and settable.

    Raises:
        TypeError: `encoder` is no mixed-scale ViT, or a number has the wrong type.
        ValueError: an argument has a wrong value, or the encoder has reducers; the message names it.
    """

    def __init__(
        self,
        encoder: MixedScaleVisionTransformer,
        num_classes: int,
        decoder: str = "mask",
        decode: str = "packed",
        *,
        decoder_depth: int = 2,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        _check_encoder(encoder)
        validation.require_int("num_classes", num_classes, 1)
        validation.require_int("decoder_depth", decoder_depth, 1)
        if decoder not in DECODERS:
            raise ValueError(f"decoder: expected one of {', '.join(DECODERS)}, got {decoder!r}")
        for name, rate in (("dropout", dropout), ("drop_path", drop_path)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name}: expected a rate in [0, 1), got {rate}")
        encoder.reset_classifier(0, None if encoder.attn_pool is None else "avg")
        encoder.dynamic_img_size = True
        encoder.gate.requires_grad_(False)
        self.num_classes = num_classes
        self.decode = decode
        self.encoder = encoder
        weight = encoder.patch_embed.proj.weight
        made: Decoder
        if decoder == "mask":
            heads = encoder.num_heads
            made = MaskTransformer(encoder.embed_dim, num_classes, heads, decoder_depth, dropout, drop_path)
        else:
            made = LinearDecoder(encoder.embed_dim, num_classes)
        self.decoder = made.to(weight)
        self.train(encoder.training)

    @property
    def decode(self) -> str:
        """Tokens that the decoder gets: "packed" or "grid"."""
        return self._decode

    @decode.setter
    def decode(self, value: str) -> None:
        if value not in DECODE:
            raise ValueError(f"decode: expected one of {', '.join(DECODE)}, got {value!r}")
        self._decode = value

    @property
    def gate(self) -> nn.Module:
        """The gate of the encoder. A new gate learns unless its parameters are frozen."""
        return self.encoder.gate

    @gate.setter
    def gate(self, value: nn.Module) -> None:
        self.encoder.gate = value

    @property
    def policy(self) -> Policy:
        """The policy of the encoder."""
        return self.encoder.policy

    @policy.setter
    def policy(self, value: Policy) -> None:
        self.encoder.policy = value

    @property
    def token_mode(self) -> str:
        """The token mode of the encoder: "packed", "trimmed" or "masked"."""
        return self.encoder.token_mode

    @token_mode.setter
    def token_mode(self, value: str) -> None:
        self.encoder.token_mode = value

    def train(self, mode: bool = True) -> "Segmenter":
        """Sets training or evaluation mode; a frozen gate stays in evaluation mode, in which it adds no noise."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.gate.parameters()):
            self.gate.eval()
        return self

    def forward(self, images: Tensor, fine_mask: Tensor | None = None) -> Tensor:
        """Computes the logits of every pixel.

        Args:
            images: [batch, 3, H, W] of any size, normalised floats, or uint8, which is normalised by the encoder's mean
                and std. They are padded below and on the right, with zeros after normalisation, to multiples of the
                region's width.
            fine_mask: bool [batch, Hc, Wc], fine regions of the padded images, which replace the gate's decision. If
                None, the gate decides.

        Returns:
            Logits [batch, num_classes, H, W], enlarged from the fine grid (bilinear).

        Raises:
            TypeError, ValueError: an argument has the wrong shape, dtype or device, or the encoder has reducers; the
                message names it.
        """
        return self.enlarged(self.forward_grid(images, fine_mask), (images.shape[2], images.shape[3]))

    def forward_grid(self, images: Tensor, fine_mask: Tensor | None = None) -> Tensor:
        """Computes the logits of every cell of the fine grid.

        Args and Raises: as in `forward`.

        Returns:
            Logits [batch, num_classes, Hf, Wf] of the padded images.
        """
        padded = self.padded(images)
        return self.segment(padded, self.encoder.decide(padded, fine_mask))

    def segment(self, images: Tensor, decision: Decision) -> Tensor:
        """The second half of `forward_grid`: logits [batch, num_classes, Hf, Wf] for a decision of `encoder.decide`.

        Args:
            images: [batch, 3, H, W], result of `padded`.
            decision: decision of the encoder for the same images.
        """
        _check_encoder(self.encoder)
        tokens, layout = self.encoder.features(images, decision)
        assert isinstance(layout, MixedScaleLayout)  # there is no reducer
        tokens = self.encoder.fc_norm(tokens)  # the final norm of towers that pool before it
        logits: Tensor
        if self.decode == "packed":
            logits = self.decoder(tokens, layout)
        else:
            logits = self.decoder.decode_grid(unpack_to_grid(tokens, layout))
        return logits

    def enlarged(self, grid: Tensor, size: tuple[int, int]) -> Tensor:
        """The logits of pixels, [batch, num_classes, *size], from those of the fine grid of their padded images."""
        patch = self.encoder.patch_size
        padded = grid.shape[2] * patch, grid.shape[3] * patch
        # A mask decoder's logits have the classes last, for which torch's interpolation takes five times as long.
        logits = F.interpolate(grid.contiguous(), size=padded, mode="bilinear", align_corners=False)
        return logits[:, :, : size[0], : size[1]]

    def predict(
        self,
        image: Tensor | Sequence[Tensor],
        window: int = 512,
        stride: int = 480,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        max_tokens: int = MAX_TOKENS,
    ) -> Tensor | list[Tensor]:
        """Segments images of any size by sliding windows, as the original Segmenter does.

        An image whose shorter side is below `window` is enlarged to it. Windows start at the multiples of `stride`; the
        last one ends at the border. Overlapping logits are averaged, and the result is resized to the image. Both
        resizings are bilinear.

        Args:
            image: [3, H, W], [batch, 3, H, W] or a list of [3, H, W] of different sizes, on any device; normalised
                floats, or uint8, which is normalised by the encoder's mean and std.
            window: height and width of a window in pixels.
            stride: distance in pixels between two windows, 1 to `window`.
            scales: factors by which the image is resized, each of which gives one view. The original's multi-scale
                results use 0.5, 0.75, 1.0, 1.25, 1.5 and 1.75, after it has scaled the shorter side to a window.
            flip: whether the mirror image of each view is a view too.
            max_tokens: patch tokens of a batch of windows, which may come from several images; a window with more is
                a batch of its own. It changes memory and speed, not the result.

        Returns:
            Logits [num_classes, H, W], [batch, num_classes, H, W] or a list of [num_classes, H, W], on the device of
            the model, in fp32 (fp64 for a model in fp64), without gradient. With several views they are the logarithm
            of the mean of the views' probabilities, so that their softmax is that mean.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape, dtype or value, or the encoder has reducers;
                the message names it.

        Note:
            The model is in evaluation mode during the call. The gate decides for all windows of a view at once: a
            result does not depend on the other images of the call, and a `Budget` holds on average over the windows
            of a view. One read from the device per image, of the number of tokens of its windows.
        """
        _check_encoder(self.encoder)
        return predict(self, image, window, stride, scales, flip, max_tokens)

    def padded(self, images: Tensor) -> Tensor:
        """Pads images to multiples of the region's width, see `forward`; uint8 images that need it become floats."""
        encoder = self.encoder
        encoder.check_pixels(images)
        side = encoder.region_width
        # torch.compile (2.14) fails on -length % side if sizes are symbolic.
        below, right = ((side - length % side) % side for length in images.shape[2:])
        if not (below or right):
            return images
        if images.dtype == torch.uint8:
            images = encoder.normalised(images).to(encoder.patch_embed.proj.weight.dtype)
        return F.pad(images, (0, right, 0, below))

    def decoder_macs(self, num_tokens: int, scales: Scales | None = None) -> int:
        """Multiply-accumulates of the decoder for an image with `num_tokens` patch tokens.

        Args:
            num_tokens: number of patch tokens.
            scales: the candidate tokens of the image; None for those of an image of size `encoder.image_size`.
        """
        cells = (scales or self.encoder.scales).most_patches
        return self.decoder.macs(num_tokens if self.decode == "packed" else cells, cells)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that should have no weight decay."""
        names = {f"encoder.{name}" for name in self.encoder.no_weight_decay()} | {"decoder.cls_emb"}
        return names & {name for name, _ in self.named_parameters()}


def _check_encoder(encoder: object) -> None:
    """Raises TypeError or ValueError unless all tokens of the encoder can be decoded."""
    if not isinstance(encoder, MixedScaleVisionTransformer):
        raise TypeError(
            f"encoder: expected a mixed-scale ViT from msvit.create_model or msvit.from_timm, got "
            f"{type(encoder).__name__}"
        )
    if len(encoder.reducers):
        blocks = ", ".join(map(str, sorted(encoder.reducers)))
        raise ValueError(f"encoder: expected no reducers, whose tokens have no place, got reducers at blocks {blocks}")
