"""The error messages and warnings of commands."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer
from torch import OutOfMemoryError

from msvit.extras import MissingExtraError, require_extra


@contextmanager
def one_line_errors(extra: str | None = None) -> Iterator[None]:
    """Turns expected errors into one line on stderr and exit code 1, and warnings into lines without a file name.

    Args:
        extra: extra of the package that the command needs, None for none. A missing extra is an expected error.
    """
    show, warnings.showwarning = warnings.showwarning, _show
    try:
        if extra is not None:
            require_extra(extra)
        yield
    except (ValueError, TypeError, OSError, FloatingPointError, MissingExtraError, OutOfMemoryError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error
    finally:
        warnings.showwarning = show


def say(text: str) -> None:
    """Prints a line, in the first process only."""
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
