"""`Segmenter.predict`: the windows of many images and views, in batches of a bounded number of tokens."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msvit.models.sliding_window import View, ViewMean, make_views
from msvit.tokens.decision import Decision
from msvit.tokens.embedding import normalise
from msvit_kernels import Scales, validation

# Default number of patch tokens in a batch of windows.
MAX_TOKENS = 4096


class Window(NamedTuple):
    """A window that waits for its batch.

    Attributes:
        view, place: the view to which the window belongs, and (top, left) in it.
        fine_mask: bool [Hc, Wc].
        num_fine: number of fine regions.
        scales: the candidate tokens of a window.
    """

    view: View
    place: tuple[int, int]
    fine_mask: Tensor
    num_fine: int
    scales: Scales


def predict(
    model: Any,
    image: Tensor | Sequence[Tensor],
    window: int,
    stride: int,
    scales: Sequence[float],
    flip: bool,
    max_tokens: int,
) -> Tensor | list[Tensor]:
    """Implements `Segmenter.predict`, which describes the arguments."""
    _check_options(window, stride, scales, flip, max_tokens)
    images = _images(image, model)
    means: list[ViewMean] = []

    def windows() -> Iterator[Window]:
        for each in images:
            mean, views = make_views(_normalised(each, model), scales, flip, window, stride)
            means.append(mean)
            yield from _decided(model, views)

    with torch.no_grad(), _evaluation_mode(model):
        for batch in batches(windows(), max_tokens):
            _segment(model, batch)
    logits = [mean.logits for mean in means]
    if not isinstance(image, Tensor):
        return logits
    if image.ndim == 3:
        return logits[0]
    return torch.stack(logits) if logits else _weight(model).new_zeros(0, model.num_classes, *image.shape[2:])


def batches(windows: Iterable[Window], max_tokens: int) -> Iterator[list[Window]]:
    """Groups windows, in order, into batches of at most `max_tokens` patch tokens; one with more is alone."""
    batch: list[Window] = []
    total = 0
    for window in windows:
        tokens = window.scales.patches(window.num_fine)
        if batch and total + tokens > max_tokens:
            yield batch
            batch, total = [], 0
        batch.append(window)
        total += tokens
    if batch:
        yield batch


def _decided(model: Any, views: Sequence[View]) -> list[Window]:
    """The windows of an image. The gate sees all windows of a view at once, and their tokens are read once."""
    decisions: list[Decision] = [model.decide(torch.stack([*map(view.crop, view.places)])) for view in views]
    places = [(view, place) for view in views for place in view.places]
    masks = torch.cat([decision.fine_mask for decision in decisions])
    counts = masks.flatten(1).sum(1).tolist()
    scales = decisions[0].scales
    return [Window(*place, mask, count, scales) for place, mask, count in zip(places, masks, counts, strict=True)]


def _segment(model: Any, batch: Sequence[Window]) -> None:
    """Adds the logits of a batch of windows to their views."""
    crops = torch.stack([window.view.crop(window.place) for window in batch])
    masks = torch.stack([window.fine_mask for window in batch])
    num_fine = sum(window.num_fine for window in batch)
    logits = model.segment(crops, Decision(masks, batch[0].scales, num_fine))
    for window, each in zip(batch, logits, strict=True):
        window.view.add(window.place, each)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Sets evaluation mode; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _images(image: Any, model: Any) -> list[Tensor]:
    """The images of a call, each [3, H, W]."""
    if isinstance(image, Tensor):
        batched = image if image.ndim == 4 else image[None]
        if batched.ndim != 4:
            raise ValueError(f"image: expected shape [3, H, W] or [batch, 3, H, W], got {[*image.shape]}")
        _check_image("image", batched, model)
        return list(batched)
    if not isinstance(image, Sequence) or isinstance(image, str):
        raise TypeError(f"image: expected a tensor or a list of tensors, got {type(image).__name__}")
    for index, each in enumerate(image):
        if not isinstance(each, Tensor) or each.ndim != 3:
            got = f"shape {[*each.shape]}" if isinstance(each, Tensor) else type(each).__name__
            raise (ValueError if isinstance(each, Tensor) else TypeError)(
                f"image[{index}]: expected a tensor of shape [3, H, W], got {got}"
            )
        _check_image(f"image[{index}]", each[None], model)
    return list(image)


def _check_image(name: str, images: Tensor, model: Any) -> None:
    """Raises TypeError or ValueError unless `images`, [batch, channels, H, W], are uint8 or floats with pixels."""
    channels, height, width = images.shape[1:]
    if channels != 3 or not height or not width:
        raise ValueError(f"{name}: expected three channels and at least one pixel, got {[*images.shape[1:]]}")
    if images.dtype == torch.uint8 and model.encoder.mean is None:
        raise ValueError(f"{name}: expected floats, since the encoder has no mean and std, got uint8")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"{name}: expected floats or uint8, got {images.dtype}")


def _check_options(window: Any, stride: Any, scales: Any, flip: Any, max_tokens: Any) -> None:
    validation.require_int("window", window, 1)
    validation.require_int("stride", stride, 1)
    if stride > window:
        raise ValueError(f"stride: expected at most window = {window} pixels, or pixels would be left out, got {stride}")
    if not isinstance(scales, Sequence) or not scales:
        raise ValueError(f"scales: expected one or more numbers, got {scales!r}")
    for scale in scales:
        validation.require_finite("scales", scale)
        if scale <= 0:
            raise ValueError(f"scales: expected numbers above zero, got {scale}")
    if not isinstance(flip, bool):
        raise TypeError(f"flip: expected a bool, got {flip!r}")
    validation.require_int("max_tokens", max_tokens, 1)


def _normalised(image: Tensor, model: Any) -> Tensor:
    """The image as normalised floats on the device of the model, so that resizing it rounds nothing."""
    image = image.to(_weight(model).device)
    if image.dtype != torch.uint8:
        return image.to(torch.promote_types(image.dtype, torch.float32))
    mean, std = (image.new_tensor(x, dtype=torch.float32).view(3, 1, 1) for x in (model.encoder.mean, model.encoder.std))
    return normalise(image, mean, std)


def _weight(model: Any) -> Tensor:
    weight: Tensor = model.encoder.patch_embed.proj.weight
    return weight
