"""`msvit train`: a run, from its start or from its last checkpoint."""

from pathlib import Path
from typing import Annotated, Any

import typer

from msvit.cli.errors import one_line_errors, say
from msvit.cli.options import with_config_options


@with_config_options()
def train(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RUN_DIR", help="New folder of the run (default: runs/PRESET-TIME)."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Continue this run from its last checkpoint, as configured.")
    ] = None,
    *,
    values: dict[str, Any],
) -> None:
    """Trains a model and its gate.

    `msvit train --preset digits` makes its own images and takes minutes on two cores. For your images: `msvit train
    --data FOLDER`, with one folder per class in FOLDER/train and in FOLDER/val. Values that are not given come from the
    preset; all are stored in RUN_DIR/config.json. On several GPUs: `torchrun --nproc-per-node 8 -m msvit train ...`.
    """
    with one_line_errors("train"):
        from msvit.training import make_config, resume_run, start_run

        if resume is not None:
            if values or output is not None:
                given = ", ".join("--" + name.replace("_", "-") for name in (*values, *["output"] * bool(output)))
                raise ValueError(f"--resume continues a run as it was configured; {given} cannot be changed")
            run = resume_run(resume)
        else:
            config = make_config(values.pop("preset", "vit"), **values)
            run = start_run(config, output)
        say(f"run in {run.folder}; msvit eval {run.folder} evaluates it again")
