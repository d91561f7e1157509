"""All commands of `msvit`, each from its own file."""

import typer

from msvit.cli.evaluate import evaluate
from msvit.cli.info import info
from msvit.cli.report import report
from msvit.cli.segment import segment
from msvit.cli.tokens import tokens
from msvit.cli.train import train

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Trains, evaluates and inspects mixed-scale vision transformers on packed tokens.",
)


@app.callback()
def _main() -> None:
    """Makes typer require the name of a command."""


app.command("info")(info)
app.command("tokens")(tokens)
app.command("segment")(segment)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("report")(report)
