"""`msvit info`: the kernel backends of this machine."""

import typer


def info() -> None:
    """Prints the available backends of each operator, and why the others are unavailable."""
    from msvit_kernels import explain

    typer.echo(explain())
