"""Command line `iai`. Torch and transformers are imported by the commands, so that `--help` answers at once."""

from __future__ import annotations

import typer

from iai_hf.cli import adapting, sharing
from iai_hf.errors import IAIError

app = typer.Typer(
    name="iai",
    help="Adapt a pretrained backbone to a labelled dataset of any length, chunk by chunk, and answer from the state.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(adapting.app)
app.add_typer(sharing.app)


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit status 2."""
    try:
        app()
    except IAIError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
