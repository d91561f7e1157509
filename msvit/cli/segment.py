"""`msvit segment`: draws the tokens and the segmentation of photographs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from msvit.cli.errors import one_line_errors
from msvit.cli.photographs import check_picture, chosen_policy, find_photograph
from msvit.cli.segmenters import GATES, MODEL, from_checkpoint, from_run
from msvit.data.decoding import MAX_PIXELS

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from msvit.models import Segmenter

_GAP = 16
_NO_WEIGHTS = (
    "--checkpoint FILE, --run RUN_DIR: expected one of them, because the weights of a new model are random. FILE is a "
    "checkpoint of msvit.save_checkpoint, of github.com/rstrudel/segmenter or of mmsegmentation"
)


def segment(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Image files, or names of sample photographs such as astronaut."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write; its suffix determines the format.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Checkpoint of a Segmenter: of msvit, of the original repository or of mmsegmentation."),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Folder of a segmentation run, in place of --checkpoint.")
    ] = None,
    model: Annotated[str | None, typer.Option(help=f"Name of the model in --checkpoint (default: {MODEL}).")] = None,
    num_classes: Annotated[
        int | None, typer.Option(help="Number of classes in --checkpoint (default: those of --classes, or 150).")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="File with the names of the classes, one per line (default: those of the run, or ADE20K's)."),
    ] = None,
    gate: Annotated[
        str | None,
        typer.Option(
            help=f"Gate that chooses the fine regions: one of {', '.join(GATES)} (default: that of the checkpoint or "
            "run, or entropy if it has none)."
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--tokens",
            help="Mean number of tokens per window of an image (default: as in the run, or half those of an all-fine "
            "window).",
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="A region is fine if the gate's probability exceeds this value.")
    ] = None,
    window: Annotated[
        int | None, typer.Option(help="Height and width of a window, in pixels (default: image size of the model).")
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(help="Distance between two windows, in pixels (default: 15/16 of a window, in full regions)."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Length to which the shorter side of an image is scaled, in pixels (default: the window)."),
    ] = None,
    width: Annotated[
        int, typer.Option(help="Width of each picture, in pixels; wide images get more if they need it.")
    ] = 448,
    max_pixels: Annotated[
        int, typer.Option(help="Largest number of pixels of an image file; larger files are refused.")
    ] = MAX_PIXELS,
) -> None:
    """Draws photographs, their tokens and their segmentation, side by side, with a legend of the classes.

    A photograph is cropped by less than a region, so that windows and regions fit.
    """
    with one_line_errors(None if run is None else "train"):
        if (checkpoint is None) == (run is None):
            raise ValueError(_NO_WEIGHTS)
        check_picture(output, width)
        policy = chosen_policy(budget, threshold)
        paths = [find_photograph(name) for name in images]
        if run is not None:
            for option, value in (("--model", model), ("--num-classes", num_classes)):
                if value is not None:
                    raise ValueError(f"{option}: expected only with --checkpoint, got --run {run}, which has its own")
            segmenter, names = from_run(run, classes, gate)
        else:
            assert checkpoint is not None
            segmenter, names = from_checkpoint(checkpoint, model, num_classes, classes, gate, window)
        if policy is not None:
            segmenter.policy = policy
        sizes = _sizes(segmenter, window, stride, size)
        _draw(paths, output, segmenter, names, sizes, width, max_pixels)


class _Sizes(NamedTuple):
    """Pixels of a window, from one window to the next, and of the shorter side of an image."""

    window: int
    stride: int
    size: int


def _sizes(segmenter: "Segmenter", window: int | None, stride: int | None, size: int | None) -> _Sizes:
    side = segmenter.encoder.region_width
    window = min(segmenter.encoder.image_size) if window is None else window
    stride = max(side, window * 15 // 16 // side * side) if stride is None else stride
    size = window if size is None else size
    for name, value, least in (("window", window, side), ("stride", stride, side), ("size", size, window)):
        if value < least or value % side:
            raise ValueError(f"--{name}: expected a multiple of {side} pixels, at least {least}, got {value}")
    if stride > window:
        raise ValueError(f"--stride: expected at most the window of {window} pixels, got {stride}")
    return _Sizes(window, stride, size)


def _draw(
    paths: Sequence[Path],
    output: Path,
    segmenter: "Segmenter",
    names: Sequence[str],
    sizes: _Sizes,
    width: int,
    max_pixels: int,
) -> None:
    from msvit.segmentation_picture import below_one_another
    from msvit_kernels.files import replacing

    rows = [_row(path, segmenter, names, sizes, width, max_pixels) for path in paths]
    with replacing(output) as temporary:
        below_one_another(rows, 2 * _GAP).save(temporary)
    typer.echo(f"wrote {output}")


def _row(
    path: Path, segmenter: "Segmenter", names: Sequence[str], sizes: _Sizes, width: int, max_pixels: int
) -> "Image.Image":
    """The pictures of a photograph, side by side, and below them the legend."""
    import torch

    from msvit.gates.fixed import reset_noise
    from msvit.models.prediction import window_tokens
    from msvit.segmentation_picture import below_one_another, draw_legend, draw_segmentation, legend_of, percent
    from msvit.visualize import draw_tokens, side_by_side, to_picture

    image = _read(path, sizes.size, segmenter.encoder.region_width, max_pixels)
    reset_noise(segmenter.gate, 0)
    fine_mask, counts = window_tokens(segmenter, image, sizes.window, sizes.stride)
    reset_noise(segmenter.gate, 0)  # a random gate decides as for the picture of the tokens
    logits = segmenter.predict(image, sizes.window, sizes.stride)
    assert isinstance(logits, torch.Tensor)
    labels = logits.argmax(0)

    scale_factor = segmenter.encoder.scale_factor
    width = max(width, 4 * scale_factor * fine_mask.shape[1])  # the least for the outlines of a wide image
    tokens = draw_tokens(image, fine_mask, scale_factor=scale_factor, width=width)
    photograph = to_picture(image, tokens.size)
    segmentation = draw_segmentation(image, labels, len(names), tokens.size)
    legend = legend_of(labels, names)
    captions = [path.stem, _tokens_text(segmenter, sizes, counts), _classes_text(labels)]
    row = side_by_side([photograph, tokens, segmentation], captions)
    typer.echo(f"{path.stem}: {captions[1]}; {', '.join(f'{entry.name} {percent(entry.share)}' for entry in legend)}")
    return below_one_another([row, draw_legend(legend, row.width)], _GAP // 2)


def _read(path: Path, shorter: int, side: int, max_pixels: int) -> "Tensor":
    """The photograph, uint8 [3, H, W]: its shorter side scaled to `shorter`, the other cropped to a multiple of `side`.

    Args:
        path: image file.
        shorter: pixels of the shorter side, a multiple of `side`.
        side: width of a region in pixels.
        max_pixels: largest number of pixels of the file.
    """
    from PIL import Image, ImageOps

    from msvit.data import decode_image
    from msvit.data.images import to_tensor

    image = decode_image(path, max_pixels=max_pixels)
    width, height = (length * shorter // min(image.size) // side * side for length in image.size)
    return to_tensor(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))


def _tokens_text(segmenter: "Segmenter", sizes: _Sizes, counts: Sequence[int]) -> str:
    most = (sizes.window // segmenter.encoder.patch_size) ** 2
    if len(counts) == 1:
        return f"{counts[0]} of {most} tokens"
    return f"{sum(counts) / len(counts):.0f} of {most} tokens per window, {len(counts)} windows"


def _classes_text(labels: "Tensor") -> str:
    found = len(labels.unique())
    return f"{found} classes" if found > 1 else "1 class"
