"""`msvit eval`: accuracy or mean IoU, tokens and multiply-accumulates of a checkpoint or a run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from msvit.cli.errors import one_line_errors, say
from msvit.cli.options import with_config_options

_OPTIONS = (
    "preset",
    "task",
    "data",
    "data_root",
    "test_split",
    "test_size",
    "data_seed",
    "num_classes",
    "num_workers",
    "max_pixels",
    "model",
    "image_size",
    "coarse",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "global_pool",
    "pixel_mean",
    "pixel_std",
    "token_mode",
    "decoder",
    "decode",
    "decoder_depth",
    "window",
    "stride",
    "reduce_zero_label",
    "class_list",
    "gate",
    "gate_file",
    "gate_target",
    "tokens_per_image",
    "budget_per",
    "batch_size",
    "precision",
    "cpu",
)


@with_config_options(_OPTIONS)
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT_OR_RUN", help="Checkpoint file, or folder of a run.")
    ],
    *,
    values: dict[str, Any],
) -> None:
    """Prints the scores on the test images: top-1 and top-5 accuracy or mean IoU, tokens and GMACs.

    For a run or a checkpoint inside a run, config.json gives the model and the data, and options override it. For any
    other file, options give them. A gate without learned parameters is calibrated to a share --gate-target of fine
    regions; for the entropy gate, this uses the first test images. Images that cannot be read are named and left out.
    """
    with one_line_errors("train"):
        from msvit.training.evaluation_job import evaluate_checkpoint

        name, found = evaluate_checkpoint(checkpoint, values)
        say(f"{name}: {found.text}")
