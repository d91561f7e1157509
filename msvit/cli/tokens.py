"""`msvit tokens`: draws the coarse and fine regions of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from msvit.cli.errors import one_line_errors
from msvit.cli.photographs import check_picture, chosen_policy, find_photograph
from msvit.data.decoding import MAX_PIXELS
from msvit.gates.factory import FIXED_GATE_NAMES

if TYPE_CHECKING:
    from torch import Tensor

_COARSE, _FINE = 32, 16
_GATES = (*FIXED_GATE_NAMES, "checkpoint")


def tokens(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Image files, or names of sample photographs such as astronaut."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Picture to write; its suffix determines the format.")],
    budget: Annotated[
        float | None,
        typer.Option("--tokens", help="Mean number of tokens per image (default: half those of an all-fine image)."),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="A region is fine if the gate's probability exceeds this value.")
    ] = None,
    gate: Annotated[
        str, typer.Option(help=f"Gate that chooses the fine regions: one of {', '.join(_GATES)}.")
    ] = "entropy",
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint with a gate, for --gate checkpoint.")] = None,
    model: Annotated[str, typer.Option(help="Name of the model in --checkpoint.")] = "msvit_small_patch16_32_224",
    size: Annotated[int, typer.Option(help="Height and width of the gate's input, in pixels.")] = 224,
    width: Annotated[int, typer.Option(help="Width of each picture, in pixels.")] = 448,
    max_pixels: Annotated[
        int, typer.Option(help="Largest number of pixels of an image file; larger files are refused.")
    ] = MAX_PIXELS,
) -> None:
    """Draws the coarse and fine regions of images.

    Images share the token budget as in a batch, so that detailed images get more tokens than simple ones.
    """
    with one_line_errors():
        _draw(images, output, budget, threshold, gate, checkpoint, model, size, width, max_pixels)


def _draw(
    names: list[str],
    output: Path,
    budget: float | None,
    threshold: float | None,
    gate: str,
    checkpoint: Path | None,
    model: str,
    size: int,
    width: int,
    max_pixels: int,
) -> None:
    import torch

    from msvit.data import read_image
    from msvit.policies import Budget
    from msvit.visualize import draw_tokens, side_by_side
    from msvit_kernels import Scales
    from msvit_kernels.files import replacing

    check_picture(output, width)
    if size < _COARSE or size % _COARSE:
        raise ValueError(f"--size: expected a multiple of {_COARSE} pixels, got {size}")
    scales = Scales((size // _COARSE, size // _COARSE), _COARSE // _FINE, num_prefix=0)
    most = scales.most_patches
    policy = chosen_policy(budget, threshold) or Budget(most / 2)
    policy.check(scales.num_regions, scales.scale_factor)
    paths = [find_photograph(name) for name in names]
    images = torch.stack([read_image(path, size, max_pixels=max_pixels) for path in paths])
    fine_mask = policy(_gate_logits(images, gate, checkpoint, model), scales.scale_factor).fine_mask
    counts = scales.patches(fine_mask.flatten(1).sum(1)).tolist()
    captions = [f"{path.stem}: {count} of {most} tokens" for path, count in zip(paths, counts, strict=True)]
    # Pictures have twice the resolution of the gate's input.
    sharp = [read_image(path, 2 * size, max_pixels=max_pixels) for path in paths]
    pictures = [
        draw_tokens(image, mask, scale_factor=scales.scale_factor, width=width)
        for image, mask in zip(sharp, fine_mask, strict=True)
    ]
    with replacing(output) as temporary:
        side_by_side(pictures, captions).save(temporary)
    typer.echo("\n".join(captions))
    if len(counts) > 1:
        typer.echo(f"on average: {sum(counts) / len(counts):.1f} of {most} tokens")
    typer.echo(f"wrote {output}")


def _gate_logits(images: "Tensor", gate: str, checkpoint: Path | None, model_name: str) -> "Tensor":
    """Logits [batch, Hc, Wc] for uint8 images."""
    import torch

    import msvit

    if gate not in _GATES:
        raise ValueError(f"--gate: expected one of {', '.join(_GATES)}, got {gate!r}")
    if (gate == "checkpoint") != (checkpoint is not None):
        raise ValueError("--gate checkpoint and --checkpoint FILE: expected both or neither, got one")
    if checkpoint is None:
        size = images.shape[-1] // _COARSE
        module = msvit.gates.make_gate(gate, _COARSE, (size, size))
    else:
        if "patch16_32" not in model_name:
            raise ValueError(f"--model: expected a model with patch16_32, got {model_name!r}")
        model = msvit.create_model(model_name, img_size=images.shape[-1])
        missing = msvit.load_checkpoint(model, checkpoint, load_head=False)
        if any(name.startswith("gate.") for name in missing):
            raise ValueError(f"--checkpoint: expected a checkpoint with a gate, got {checkpoint} without one")
        module = model.gate
    with torch.inference_mode():
        logits: Tensor = module.eval()(images)
    return logits
