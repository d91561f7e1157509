"""What a command says when something is wrong."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns expected errors into one line on stderr and exit code 1, and warnings into lines without a file name."""
    show, warnings.showwarning = warnings.showwarning, _show
    try:
        yield
    except (ValueError, TypeError, OSError, FloatingPointError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and type(error).__name__ != "OutOfMemoryError":
            raise  # of torch, which has not been imported here; others are defects
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error
    finally:
        warnings.showwarning = show


def say(text: str) -> None:
    """Prints a line, in the first of several processes only."""
    if int(os.environ.get("RANK", "0")) == 0:
        typer.echo(text)


def _show(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    typer.echo(f"warning: {message}", err=True)
