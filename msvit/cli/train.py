"""`msvit train`: starts a run, or continues one from its last checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from msvit.cli.errors import one_line_errors, say
from msvit.cli.options import with_config_options


@with_config_options()
def train(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RUN_DIR", help="New folder for the run (default: runs/PRESET-TIME)."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="Continue this run from its last checkpoint, with its configuration."),
    ] = None,
    *,
    values: dict[str, Any],
) -> None:
    """Trains a model and its gate.

    `msvit train --preset digits` makes its own images and takes minutes on two cores. To train on your images, run
    `msvit train --data FOLDER`, with one folder per class in FOLDER/train and in FOLDER/val. The preset gives all
    other values, and RUN_DIR/config.json stores them. `--task segmentation` trains a Segmenter on folders of images and
    label files; `--preset digits-segmentation` makes its own. To train on 8 GPUs, run
    `torchrun --nproc-per-node 8 -m msvit train ...`.
    """
    with one_line_errors("train"):
        from msvit.training import make_config, resume_run, start_run

        if resume is not None:
            if values or output is not None:
                given = ", ".join("--" + name.replace("_", "-") for name in (*values, *["output"] * bool(output)))
                raise ValueError(
                    f"--resume: expected no other option, got {given}; a run continues as it was configured"
                )
            run = resume_run(resume)
        else:
            config = make_config(values.pop("preset", None), **values)
            run = start_run(config, output)
        say(f"wrote {run.folder}; to evaluate it again: msvit eval {run.folder}")
