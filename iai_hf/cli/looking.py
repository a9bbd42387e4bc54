"""The command that looks at a state or an amortizer."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated

import typer

from iai_hf.cli.options import Json, Quiet, describe, report, start_logging
from iai_hf.errors import StateError

app = typer.Typer()


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="Folder of a state or an amortizer.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What a state or an amortizer is, without loading its backbone."""
    start_logging(quiet)
    from iai_hf.auto import AutoAmortizer, amortizer_class
    from iai_hf.files import STATE_FILE
    from iai_hf.state import TaskState

    state = TaskState.from_pretrained(path) if (path / STATE_FILE).is_file() or path.is_file() else None
    if state is not None:
        content = describe(state)
    elif path.is_dir():
        content = AutoAmortizer.describe(path)
    else:
        raise StateError(f"nothing at {path}; expected a folder with a state or an amortizer")
    kind = amortizer_class(content["method"])
    content |= {"regime": kind.regime, "reads": kind.reads, "meaning": (inspect.getdoc(kind) or "").splitlines()[0]}
    if state is not None:
        content |= kind.summary(state)
    report(content, as_json, "\n".join(f"{key}: {value}" for key, value in content.items()))
