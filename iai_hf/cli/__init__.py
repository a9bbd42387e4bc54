"""Command line `iai`. Torch and transformers are imported by the commands, so that `--help` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise

import typer

from iai_hf.cli import adapting, answering, auditing, editing, looking, sharing
from iai_hf.errors import ConfigError, IAIError

SPELLED = {"quotes": "--quotes or --no-quotes"}
app = typer.Typer(
    name="iai",
    help="Adapt a pretrained backbone to a labelled dataset of any length, chunk by chunk, and answer from the state.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(adapting.app)
app.add_typer(answering.app)
app.add_typer(auditing.app)
app.add_typer(editing.app)
app.add_typer(looking.app)
app.add_typer(sharing.app)


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit status 2."""
    try:
        for before, argument in pairwise(sys.argv):
            if not argument.strip():  # a path would be the folder here
                raise ConfigError(f"there is nothing behind {before!r}; expected a value: is a variable unset?")
        app()
    except IAIError as error:
        typer.echo(f"error: {error}{_flags(error.options)}", err=True)
    except OSError as error:  # a disk that is full, a file that was taken away
        place = f" {error.filename}" if error.filename else ""
        typer.echo(f"error: can't read or write{place}: {error.strerror or error}", err=True)
    else:
        return
    raise SystemExit(2)


def _flags(options: Sequence[str]) -> str:
    """The options that mend an error, as the command line spells them."""
    spelled = [SPELLED.get(option, f"--{option.replace('_', '-')}") for option in options]
    return f" ({', '.join(spelled)})" if spelled else ""
