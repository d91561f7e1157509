"""`msvit info`: the kernels of this machine."""

import typer


def info() -> None:
    """Prints which backends this machine has for each operator, and why others are missing."""
    from msvit_kernels import explain

    typer.echo(explain())
