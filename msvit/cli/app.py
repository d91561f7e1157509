"""All commands of `msvit`, each from a file of its own."""

import typer

from msvit.cli.evaluate import evaluate
from msvit.cli.info import info
from msvit.cli.report import report
from msvit.cli.tokens import tokens
from msvit.cli.train import train

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Packed mixed-scale vision transformers.",
)


@app.callback()
def _main() -> None:
    """Makes typer keep the names of commands."""


app.command("info")(info)
app.command("tokens")(tokens)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("report")(report)
