"""Command lines of the benches: the parser, options that several benches have, and the console."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_parser(documentation: str | None) -> argparse.ArgumentParser:
    """A parser whose description is the first line of a docstring, and whose epilog is the rest."""
    summary, _, rest = (documentation or "").partition("\n")
    return argparse.ArgumentParser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds --device, which `machine.find_device` reads."""
    parser.add_argument("--device", help="cpu or cuda (default: cuda if torch finds a GPU, else cpu)")


def add_output(parser: argparse.ArgumentParser, files: str, default: str) -> None:
    """Adds --output, the folder of the results."""
    parser.add_argument("--output", type=Path, help=f"folder of the {files} (default: {default})")


def split_names(text: str, separator: str = ",") -> tuple[str, ...]:
    """The names in "a,b"; an empty text has none."""
    return tuple(filter(None, text.split(separator)))


def short_name(dtype: torch.dtype) -> str:
    """Name of a dtype, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def make_console() -> Console:
    """A console at least 150 columns wide on any terminal: a wrapped line is better than a cut column."""
    console = Console(highlight=False)
    console.width = max(console.width, 150)
    return console


def parse_methods(text: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """Names from "packed graph,dense"; all known methods if the text is None.

    Raises:
        ValueError: a name that no method has.
    """
    names = tuple(known) if text is None else tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in known:
            raise ValueError(f"--methods: expected some of {', '.join(known)}, got {name!r}")
    return names
