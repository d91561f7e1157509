"""`msvit report`: the paper's figures for runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msvit.cli.errors import one_line_errors

if TYPE_CHECKING:
    import torch


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders that `msvit train` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the page and the figures (default: RUN_DIR/report for one run, else report).",
        ),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="Number of test images to use, starting with the first (default: all).")
    ] = None,
    maps: Annotated[int, typer.Option(help="Number of test images to draw, starting with the first.")] = 12,
    transforms: Annotated[
        int, typer.Option(help="Number of random zooms and shifts under which gates are compared; 0 for none.")
    ] = 16,
    seconds: Annotated[float, typer.Option(help="Time to spend on timing each model, in seconds.")] = 2.0,
    max_pixels: Annotated[
        int | None,
        typer.Option(help="Largest number of pixels of an image file (default: that of the run)."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: a GPU if there is one).")] = None,
) -> None:
    """Draws the paper's figures for one or more runs, as PNG files and one HTML page.

    The figures show accuracy against cost, masks by position, learned priors, token maps, tokens per image, and zoomed
    and shifted images. Runs that differ only in their seed form one setting, shown by mean and standard deviation.
    """
    with one_line_errors("train"):
        from msvit.report import build_report

        if output is None:
            output = runs[0] / "report" if len(runs) == 1 else Path("report")
        page = build_report(
            runs,
            output,
            device=_device(device),
            limit=images,
            maps=maps,
            transforms=transforms,
            latency_seconds=seconds,
            max_pixels=max_pixels,
        )
        typer.echo(f"wrote {page}")


def _device(name: str | None) -> "torch.device":
    import torch

    if name not in (None, "cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: got cuda, but torch finds no GPU on this machine")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
