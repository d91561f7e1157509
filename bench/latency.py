"""Latency of ViT-S against its number of tokens: dense, masked, trimmed and packed, as in fig. 10 and table 3 of MSViT.

    python bench/latency.py --tokens 64..576

For each number of tokens N, it times timm's ViT-S/16 on an image with about N patches (the nearest square) and MSViT-S
(224 px up to 196 tokens, 384 px above) with a budget of N tokens per image on average. An entropy gate chooses the
regions. "transformer" is the time of the blocks; "all" is the time of the whole call, from uint8 images to logits,
including the gate. Both are in milliseconds per image. GMACs and the share of the peak count only active tokens.

With --compile, packed and dense also run through torch.compile (static shapes); dense only with 196 and 576 tokens, the
reference of the speed-ups. With --cuda-graph (GPU), they also run as CUDA graphs, compiled and not; a replay includes
the copy of the images to the graph's memory. The headline pair compiles first: dense with 196 tokens and packed with
98, at the largest batch and then with one image.

    python bench/latency.py --tokens 98,196 --batch 256 --cuda-graph --seconds 100

Every method takes its turn in each round, and rounds continue until the time is over. Timings are noisy; compare
ratios. The masked model computes every candidate for any N, so it is timed only once per image size and round, each
time at another N. The CSV is rewritten during the run, so a run that is stopped leaves the rows measured so far.
"""

import argparse
import re
import time
from collections.abc import Sequence
from pathlib import Path

from bench import STARTED
from bench.command_line import DTYPES, add_device, add_output, make_console, make_parser, parse_methods
from bench.failures import errors_in_one_line
from bench.machine import find_device, results_dir
from bench.vit.forms import FORMS
from bench.vit.measurement import Request, run
from bench.vit.tokens import parse_tokens
from bench.vit.zoo import MODES

DEFAULT_TOKENS = "64..576"
METHODS = ("dense", *MODES, *FORMS)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line without checking its values."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--tokens", default=DEFAULT_TOKENS, help="such as 64..576, 64,100,196 or 98 (default: %(default)s)"
    )
    parser.add_argument("--batch", default="1,16", help="batch sizes, separated by commas (default: %(default)s)")
    parser.add_argument("--images", type=Path, help="folder of images (default: photographs of scikit-image)")
    add_device(parser)
    parser.add_argument("--dtype", choices=DTYPES, help="default: fp32 on a CPU, bf16 on a GPU")
    parser.add_argument("--compile", action="store_true", help="also time dense and packed through torch.compile")
    parser.add_argument("--cuda-graph", action="store_true", help="also time them compiled and as CUDA graphs (GPU)")
    parser.add_argument("--methods", help=f"methods to time, separated by commas (default: all): {', '.join(METHODS)}")
    parser.add_argument("--seconds", type=float, default=200, help="time limit of the run (default: %(default)s)")
    add_output(parser, "CSV and PNG files", "bench/results/<device>")
    return parser.parse_args(argv)


def parse_batches(text: str) -> list[int]:
    """Batch sizes from "1,16".

    Raises:
        ValueError: not numbers from 1 upwards.
    """
    batches = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    if min(batches) < 1:
        raise ValueError(f"--batch: expected numbers from 1 upwards, separated by commas, got {text!r}")
    return sorted(set(batches))


def file_name(tokens: str, dtype_name: str) -> str:
    """Name of the CSV; the tokens are part of it unless the default range is among them."""
    name = f"latency_{dtype_name}"
    if DEFAULT_TOKENS not in tokens.split(","):
        name += "_" + re.sub(r"[^0-9]+", "-", tokens)
    return f"{name}.csv"


def make_request(arguments: argparse.Namespace, start: float) -> Request:
    """The request of a command line whose time runs from `start` on.

    Raises:
        ValueError: an argument that cannot be used.
    """
    tokens, batches = parse_tokens(arguments.tokens), parse_batches(arguments.batch)
    methods, device = parse_methods(arguments.methods, METHODS), find_device(arguments.device)
    if arguments.cuda_graph and device.type != "cuda":
        raise ValueError("--cuda-graph: expected a GPU, got a CPU")
    dtype_name = arguments.dtype or ("bf16" if device.type == "cuda" else "fp32")
    compiled = [form for form in FORMS if arguments.cuda_graph or (arguments.compile and form.endswith("compiled"))]
    return Request(
        tokens=tokens,
        batches=batches,
        methods=methods,
        forms=[form for form in compiled if form in methods],
        images=arguments.images,
        device=device,
        dtype_name=dtype_name,
        seconds=arguments.seconds,
        start=start,
        path=(arguments.output or results_dir(device)) / file_name(arguments.tokens, dtype_name),
    )


def main(argv: Sequence[str] | None = None, start: float | None = None) -> None:
    """Runs the bench; its time limit counts from `start`, a value of `time.perf_counter`, or from now."""
    arguments = parse_arguments(argv)
    with errors_in_one_line():
        run(make_request(arguments, time.perf_counter() if start is None else start), make_console())


if __name__ == "__main__":
    main(start=STARTED)
