"""Latency of Segmenter at the tokens of the paper's table 4: dense, masked, packed with a grid or a packed decoder.

    python bench/segmentation.py --models small --tokens 552

Seg-T and Seg-S have a ViT with patches of 16 pixels and a mask decoder of two blocks for 150 classes. "dense" is the
original Segmenter, built from timm's modules. The others get mixed-scale tokens, with regions of 32 pixels that an
entropy gate and a budget of N tokens per image on average choose. "masked" and "packed grid" replicate coarse tokens
before the decoder, as in the paper; "packed" decodes packed tokens. Times are milliseconds per image of the whole call,
from uint8 images to masks, including gate and decoder. Masks have the resolution of the fine grid, and with --pixels
also that of the image. GMACs count only active tokens.

Every method takes its turn in each round, at least three times, and rounds continue until the time is over. The masked
model computes every candidate for any N, so it is timed once per model and batch size.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from bench.command_line import (
    DTYPES,
    add_device,
    add_output,
    make_console,
    make_parser,
    parse_methods,
    split_names,
)
from bench.failures import errors_in_one_line
from bench.latency import parse_batches
from bench.machine import facts, find_device, results_dir
from bench.roofline import Roofline
from bench.rows import write_rows
from bench.timing import interleave
from bench.vit.images import images_from_files
from bench.vit.segmentation_plot import plot_segmentation
from bench.vit.segmentation_rows import Row, make_rows
from bench.vit.segmentation_table import print_table
from bench.vit.segmenters import CHECKED, MASKS, METHODS, Segmenters
from bench.vit.table4 import IMAGE_SIZE, LABELS, default_tokens
from bench.vit.tokens import COARSE, parse_tokens


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line without checking its values."""
    parser = make_parser(__doc__)
    parser.add_argument("--models", default="tiny,small", help="default: %(default)s")
    parser.add_argument("--tokens", help="such as 552 or 552,684 (default: those of table 4)")
    parser.add_argument("--batch", default="1,8", help="batch sizes, separated by commas (default: %(default)s)")
    parser.add_argument("--methods", help=f"separated by commas (default: all): {', '.join(METHODS)}")
    parser.add_argument("--pixels", action="store_true", help="also time masks of whole pixels")
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="in pixels (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="folder of images (default: photographs of scikit-image)")
    add_device(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--seconds", type=float, default=300, help="time limit of measuring (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny model on small images: a smoke test")
    add_output(parser, "CSV and PNG files", "bench/results/<device>; none with --quick")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.models, arguments.image_size, arguments.batch, arguments.seconds = "tiny", 64, "2", 0.1
        arguments.tokens = arguments.tokens or "9"
    return arguments


def parse_models(text: str) -> tuple[str, ...]:
    """Sizes from "tiny,small".

    Raises:
        ValueError: a size that table 4 does not have, or none.
    """
    sizes = split_names(text)
    if not sizes or not set(sizes) <= LABELS.keys():
        raise ValueError(f"--models: expected some of {', '.join(LABELS)}, got {text!r}")
    return sizes


@torch.inference_mode()
def measure(arguments: argparse.Namespace, device: torch.device, dtype_name: str, console: Console) -> list[Row]:
    """CSV rows of all models and batch sizes.

    Raises:
        ValueError: an argument that cannot be used.
        RefusalError: the methods disagree.
    """
    sizes, batches, names = (
        parse_models(arguments.models),
        parse_batches(arguments.batch),
        parse_methods(arguments.methods, METHODS),
    )
    given = None if arguments.tokens is None else parse_tokens(arguments.tokens)
    side, dtype = arguments.image_size, DTYPES[dtype_name]
    if side < COARSE or side % COARSE:
        raise ValueError(f"--image-size: expected a multiple of {COARSE}, got {side}")
    images = images_from_files(arguments.images, side, max(*batches, CHECKED), console).to(device)
    roofline = Roofline.measure(device, dtype, min(1.0, arguments.seconds))
    seconds = arguments.seconds / len(sizes) / len(batches)
    rows: list[Row] = []
    torch.manual_seed(0)
    for size in sizes:
        models = Segmenters(size, side, images, dtype)
        tokens = given or default_tokens(size, models.cells)
        models.check(min(tokens))
        for batch in batches:
            made = [each for masks in MASKS[: 1 + arguments.pixels] for each in models.methods(tokens, batch, masks)]
            methods = [method for method in made if method.name in names]
            samples = interleave({method.key: method.call for method in methods}, device, seconds)
            rows += make_rows(methods, samples, size, side, batch, device, roofline)
    extra = {"dtype": dtype_name} | roofline.columns() | facts(device)
    return [row | extra for row in rows]


def run(arguments: argparse.Namespace, console: Console) -> list[Row]:
    """Measures, then writes the table, the CSV and the picture.

    Raises:
        ValueError: an argument that cannot be used.
        RefusalError: the methods disagree.
    """
    device = find_device(arguments.device)
    dtype_name = arguments.dtype or ("bf16" if device.type == "cuda" else "fp32")
    rows = measure(arguments, device, dtype_name, console)
    print_table(rows, console)
    output = arguments.output or (None if arguments.quick else results_dir(device))
    if output is not None:
        path = output / f"segmentation_{dtype_name}.csv"
        write_rows(path, rows)
        plot_segmentation(rows, path.with_suffix(".png"))
        console.print(f"wrote {path} and .png")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the bench."""
    arguments = parse_arguments(argv)
    with errors_in_one_line():
        run(arguments, make_console())


if __name__ == "__main__":
    main()
