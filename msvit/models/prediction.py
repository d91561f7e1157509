"""`Segmenter.predict`: the windows of many images and views, in batches of a bounded number of tokens."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from msvit.models.modes import evaluation_mode
from msvit.models.sliding_window import View, ViewMean, make_views
from msvit.tokens.decision import Decision
from msvit_kernels import Scales, validation

if TYPE_CHECKING:
    from msvit.models.segmenter import Segmenter

# Default number of patch tokens in a batch: 4 to 7 windows of 512 pixels. On a CPU, Seg-T and Seg-S take as long per
# window in batches of 1 to 4, to within a tenth.
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
    model: "Segmenter",
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
    with torch.no_grad(), evaluation_mode(model):
        means, _ = segment_images(model, images, window, stride, scales, flip, max_tokens)
    logits = [mean.logits for mean in means]
    if not isinstance(image, Tensor):
        return logits
    if image.ndim == 3:
        return logits[0]
    return torch.stack(logits) if logits else _weight(model).new_zeros(0, model.num_classes, *image.shape[2:])


def segment_images(
    model: "Segmenter",
    images: Iterable[Tensor],
    window: int,
    stride: int,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    max_tokens: int = MAX_TOKENS,
) -> tuple[list[ViewMean], list[list[Window]]]:
    """Runs the windows of images, in batches of tokens.

    Args:
        model: a Segmenter in evaluation mode.
        images: uint8 or normalised floats, each [3, H, W].
        window: as in `Segmenter.predict`.
        stride: as in `Segmenter.predict`.
        scales: as in `Segmenter.predict`.
        flip: as in `Segmenter.predict`.
        max_tokens: as in `Segmenter.predict`.

    Returns:
        For each image the mean over its views, with logits, and its windows.
    """
    means: list[ViewMean] = []
    found: list[list[Window]] = []

    def windows() -> Iterator[Window]:
        for image in images:
            mean, views = make_views(normalised_image(image, model), scales, flip, window, stride)
            means.append(mean)
            found.append(_decided_windows(model, views))
            yield from found[-1]

    for batch in _batches(windows(), max_tokens):
        _segment_windows(model, batch)
    return means, found


def window_tokens(model: "Segmenter", image: Tensor, window: int, stride: int) -> tuple[Tensor, list[int]]:
    """Finds the fine regions and the numbers of tokens with which `predict` segments an image, for a picture of them.

    Args:
        model: a Segmenter in evaluation mode.
        image: uint8 or normalised floats [3, H, W]; H and W are at least `window`.
        window: as in `Segmenter.predict`.
        stride: as in `Segmenter.predict`. H, W, `window` and `stride` are multiples of the region's width, so that the
            regions of overlapping windows coincide.

    Returns:
        bool [Hc, Wc], True for regions that are fine in at least one window; and the patch tokens of each window.
    """
    side = model.encoder.region_width
    with torch.no_grad():
        _, views = make_views(normalised_image(image, model), (1.0,), False, window, stride)
        windows = _decided_windows(model, views)
    fine_mask = windows[0].fine_mask.new_zeros(image.shape[1] // side, image.shape[2] // side)
    for each in windows:
        top, left = (start // side for start in each.place)
        height, width = each.fine_mask.shape
        fine_mask[top : top + height, left : left + width] |= each.fine_mask
    return fine_mask, [each.scales.patches(each.num_fine) for each in windows]


def _batches(windows: Iterable[Window], max_tokens: int) -> Iterator[list[Window]]:
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


def _decided_windows(model: "Segmenter", views: Sequence[View]) -> list[Window]:
    """The windows of an image. The gate sees all windows of a view at once, and their tokens are read once."""
    decisions = [_decision(model, [view.crop(place) for place in view.places]) for view in views]
    places = [(view, place) for view in views for place in view.places]
    masks = torch.cat([decision.fine_mask for decision in decisions])
    counts = masks.flatten(1).sum(1).tolist()
    scales = decisions[0].scales
    return [Window(*place, mask, count, scales) for place, mask, count in zip(places, masks, counts, strict=True)]


def _decision(model: "Segmenter", crops: list[Tensor]) -> Decision:
    return model.encoder.decide(model.padded(torch.stack(crops)))


def _segment_windows(model: "Segmenter", batch: Sequence[Window]) -> None:
    """Adds the logits of a batch of windows to their views; they are enlarged one by one, to save memory."""
    crops = torch.stack([window.view.crop(window.place) for window in batch])
    masks = torch.stack([window.fine_mask for window in batch])
    num_fine = sum(window.num_fine for window in batch)
    grids = model.segment(model.padded(crops), Decision(masks, batch[0].scales, num_fine))
    for window, grid in zip(batch, grids.split(1), strict=True):
        window.view.add(window.place, model.enlarged(grid, (crops.shape[2], crops.shape[3]))[0])


def _images(image: Any, model: "Segmenter") -> list[Tensor]:
    """The images of a call, each [3, H, W]."""
    if isinstance(image, Tensor):
        _check_image("image", image, model, "[3, H, W] or [batch, 3, H, W]")
        return [image] if image.ndim == 3 else list(image)
    if not isinstance(image, Sequence) or isinstance(image, str):
        raise TypeError(f"image: expected a tensor or a list of tensors, got {type(image).__name__}")
    for index, each in enumerate(image):
        _check_image(f"image[{index}]", each, model, "[3, H, W]")
    return list(image)


def _check_image(name: str, image: Any, model: "Segmenter", shape: str) -> None:
    """Raises TypeError or ValueError unless `image` has one of the shapes that the text `shape` names, and pixels."""
    if not isinstance(image, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(image).__name__}")
    axes = (3, 4) if "batch" in shape else (3,)
    if image.ndim not in axes or image.shape[-3] != 3 or not (image.shape[-2] and image.shape[-1]):
        raise ValueError(f"{name}: expected shape {shape} with at least one pixel, got {[*image.shape]}")
    model.encoder.check_dtype(name, image)


def _check_options(window: Any, stride: Any, scales: Any, flip: Any, max_tokens: Any) -> None:
    validation.require_int("window", window, 1)
    validation.require_int("stride", stride, 1)
    if stride > window:
        raise ValueError(
            f"stride: expected at most window = {window} pixels, or pixels would be left out, got {stride}"
        )
    if not isinstance(scales, Sequence) or not scales:
        raise ValueError(f"scales: expected one or more numbers, got {scales!r}")
    for scale in scales:
        validation.require_finite("scales", scale)
        if scale <= 0:
            raise ValueError(f"scales: expected numbers above zero, got {scale}")
    if not isinstance(flip, bool):
        raise TypeError(f"flip: expected a bool, got {flip!r}")
    validation.require_int("max_tokens", max_tokens, 1)


def normalised_image(image: Tensor, model: "Segmenter") -> Tensor:
    """The image as normalised floats on the device of the model, so that resizing it rounds nothing."""
    image = image.to(_weight(model).device)
    if image.dtype == torch.uint8:
        return model.encoder.normalised(image)
    return image.to(torch.promote_types(image.dtype, torch.float32))


def _weight(model: "Segmenter") -> Tensor:
    weight: Tensor = model.encoder.patch_embed.proj.weight
    return weight
