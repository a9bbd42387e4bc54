"""Commands that edit a state: each reads one, and writes the edited one to another folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_hf.cli.options import (
    AllowMissingOutputs,
    DataOption,
    Dtype,
    InputColumn,
    Json,
    LabelSeparator,
    OutputColumn,
    Quiet,
    Quotes,
    Split,
    StateAdapter,
    StateBackbone,
    StateDir,
    StateRevision,
    StateWeights,
    UnlabelledOption,
    a_folder,
    chosen_split,
    columns,
    describe,
    hold_new,
    report,
    start_logging,
)
from iai_hf.data import TRAIN
from iai_hf.errors import ConfigError

if TYPE_CHECKING:
    from iai_hf.amortizer import Amortizer
    from iai_hf.state import TaskState

OutputOption = Annotated[Path, typer.Option("--output", help="Folder for the edited state.", callback=a_folder)]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Set what can't be undone exactly back to where it began; answers may lose by it."),
]
app = typer.Typer()


@app.command()
def forget(
    context: typer.Context,
    state_dir: StateDir,
    data: DataOption,
    output: OutputOption,
    unlabelled: UnlabelledOption = None,
    allow_missing_outputs: AllowMissingOutputs = False,
    strict: Strict = False,
    backbone: StateBackbone = None,
    revision: StateRevision = None,
    weights: StateWeights = None,
    adapter: StateAdapter = None,
    dtype: Dtype = None,
    input_column: InputColumn = "input",
    output_column: OutputColumn = "output",
    split: Split = None,
    quotes: Quotes = None,
    label_separator: LabelSeparator = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Take examples that a state has read out of it."""
    start_logging(quiet)
    state, amortizer = _opened(
        context, state_dir, output, backbone, weights=weights, adapter=adapter, dtype=dtype, revision=revision
    )
    named = columns(input_column, output_column, quotes=quotes, label_separator=label_separator)
    named = replace(named, allow_missing_outputs=allow_missing_outputs)
    split = chosen_split(data, split, TRAIN)
    edited = amortizer.forget(state, data, columns=named, unlabelled=unlabelled, split=split, strict=strict)
    _save(state, edited, output, as_json)


@app.command()
def relabel(
    context: typer.Context,
    state_dir: StateDir,
    data: DataOption,
    output: OutputOption,
    to: Annotated[str | None, typer.Option("--to", help="The label that all of them get.")] = None,
    to_column: Annotated[str | None, typer.Option("--to-column", help="Column with the label that each gets.")] = None,
    strict: Strict = False,
    backbone: StateBackbone = None,
    revision: StateRevision = None,
    weights: StateWeights = None,
    adapter: StateAdapter = None,
    dtype: Dtype = None,
    input_column: InputColumn = "input",
    output_column: OutputColumn = "output",
    split: Split = None,
    quotes: Quotes = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Move examples from the label that a state has read them with (--output-column) to another one."""
    start_logging(quiet)
    from iai_hf.data import open_stream

    if (to is None) == (to_column is None):
        raise ConfigError("expected either --to LABEL or --to-column COLUMN")
    state, amortizer = _opened(
        context, state_dir, output, backbone, weights=weights, adapter=adapter, dtype=dtype, revision=revision
    )
    split = chosen_split(data, split, TRAIN)
    wanted: str | list[str] = to or ""
    if to_column is not None:
        stream = open_stream(data, columns(input_column, to_column, quotes=quotes), split=split)
        wanted = [record.output for record in stream.records()]
    named = columns(input_column, output_column, quotes=quotes)
    edited = amortizer.relabel(state, data, wanted, columns=named, split=split, strict=strict)
    _save(state, edited, output, as_json)


@app.command()
def labels(
    context: typer.Context,
    state_dir: StateDir,
    output: OutputOption,
    rename: Annotated[list[str] | None, typer.Option("--rename", help="OLD=NEW; may be repeated.")] = None,
    merge: Annotated[list[str] | None, typer.Option("--merge", help="A,B=NAME; may be repeated.")] = None,
    add: Annotated[list[str] | None, typer.Option("--add", help="Name of a new label; may be repeated.")] = None,
    drop: Annotated[list[str] | None, typer.Option("--drop", help="Label to drop; may be repeated.")] = None,
    backbone: StateBackbone = None,
    revision: StateRevision = None,
    weights: StateWeights = None,
    adapter: StateAdapter = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Rename, merge, add and drop labels of a state, in this order."""
    start_logging(quiet)
    if not (rename or merge or add or drop):
        raise ConfigError("nothing to edit; expected --rename OLD=NEW, --merge A,B=NAME, --add NAME or --drop LABEL")
    pairs = [_pair("--rename", text) for text in rename or ()]
    joined = [_pair("--merge", text) for text in merge or ()]
    state, amortizer = _opened(
        context, state_dir, output, backbone, weights=weights, adapter=adapter, dtype=dtype, revision=revision
    )
    edited = state
    for old, new in pairs:
        edited = amortizer.rename_label(edited, old, new)
    for several, name in joined:
        edited = amortizer.merge_labels(edited, [label.strip() for label in several.split(",")], name)
    for name in add or ():
        edited = amortizer.add_label(edited, name)
    for label in drop or ():
        edited = amortizer.drop_label(edited, label)
    _save(state, edited, output, as_json)


def _pair(option: str, text: str) -> tuple[str, str]:
    old, _, new = (part.strip() for part in text.partition("="))
    if not old or not new:
        raise ConfigError(f"{option} {text!r}; expected what stands, an equals sign, and the new name")
    return old, new


def _opened(
    context: typer.Context, state_dir: Path, output: Path, backbone: str | None, **loading: Any
) -> tuple[TaskState, Amortizer]:
    """The state, and the amortizer that made it; the output folder is held."""
    from iai_hf.auto import AutoAmortizer
    from iai_hf.state import TaskState

    hold_new(context, output)
    state = TaskState.from_pretrained(state_dir)
    return state, AutoAmortizer.for_state(state, backbone, **loading)


def _save(before: TaskState, state: TaskState, output: Path, as_json: bool) -> None:
    state.save_pretrained(output)
    told = f"{state.header.examples:,} examples, {len(state.task.labels)} labels at {output}"
    for line in state.header.history[len(before.header.history) :]:
        if line.restepped is not None:
            told += f"; what follows the stream was made anew from {line.restepped:,} retained examples"
        if line.approximate:
            parts = ", ".join(sorted(line.approximate))
            told += f"; {line.edit}: {max(line.approximate.values()):.2%} of what made {parts} could not be undone"
    report(describe(state), as_json, told)
