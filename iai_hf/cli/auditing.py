"""The command that audits a dataset's labels."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iai_hf import processes
from iai_hf.cli.options import (
    Dtype,
    InputColumn,
    Json,
    LabelSeparator,
    OutputColumn,
    Quiet,
    Quotes,
    StateAdapter,
    StateBackbone,
    StateRevision,
    StateWeights,
    chosen_split,
    columns,
    print_table,
    report,
    start_logging,
    state_files,
    to_standard_output,
)
from iai_hf.data import TRAIN
from iai_hf.errors import ConfigError, DataError

SHOWN, WIDTH = 10, 60  # rows of the table, and letters of a text in it

if TYPE_CHECKING:
    from iai_hf.audit import Finding

app = typer.Typer()


@app.command()
def audit(
    data: Annotated[str, typer.Option("--data", help="Labelled data, as `iai adapt` reads them.")],
    state_dir: Annotated[
        Path | None,
        typer.Argument(metavar="[STATE_DIR]", help="A state that has read them; by default one is made, and not kept."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="JSONL file, a line an example.", callback=to_standard_output)
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="PNG file: which labels are one another's.")] = None,
    backbone: StateBackbone = None,
    revision: StateRevision = None,
    weights: StateWeights = None,
    adapter: StateAdapter = None,
    dtype: Dtype = None,
    input_column: InputColumn = "input",
    output_column: OutputColumn = "output",
    split: Annotated[str | None, typer.Option(help=f"Split of a Hub dataset; by default {TRAIN}.")] = None,
    quotes: Quotes = None,
    label_separator: LabelSeparator = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Labels that are probably wrong, texts with two labels or without a signal, labels that are one another's."""
    start_logging(quiet)
    from iai_hf import audit as audits
    from iai_hf.auto import AutoAmortizer
    from iai_hf.data import open_stream
    from iai_hf.files import check_output, check_own_lines, write_whole
    from iai_hf.plots import confusion_plot
    from iai_hf.state import TaskState
    from iai_hf.task import Kind, TaskSpec, distinct

    for path, suffix in ((output, ".jsonl"), (plot, ".png")):
        if path is not None:
            check_output(path, data, *(state_files(state_dir) if state_dir else []))
            if path.suffix.lower() not in (suffix, ""):
                raise ConfigError(f"{path} has the suffix {path.suffix}; expected {suffix}")
    if output is not None:
        check_own_lines(output, ("row", "wrong"), "a file of findings")
    if output is not None and plot is not None and output.resolve() == plot.resolve():
        raise ConfigError(f"--output and --plot are both {output}; name two files")
    state = None if state_dir is None else TaskState.from_pretrained(state_dir)
    names = columns(input_column, output_column, None, state, quotes, label_separator)
    part = chosen_split(data, split, TRAIN)
    records = list(open_stream(data, names, split=part).records())
    if not records:
        raise DataError(f"{data} has no examples; expected at least one")
    inputs, outputs = [record.input for record in records], [record.output for record in records]
    if state is None:
        options = {name: value for name, value in (("revision", revision), ("dtype", dtype)) if value is not None}
        config = {"weights": weights, "adapter": adapter}
        config = {name: value for name, value in config.items() if value is not None}
        amortizer = AutoAmortizer.from_pretrained("iterative", backbone=backbone, config=config, **options)
        kind: Kind = "multi-label" if isinstance(outputs[0], tuple) else "classification"
        empty = amortizer.init_state(TaskSpec(kind, distinct(outputs)))
        state = amortizer.adapt(data, empty, columns=names, split=part, shuffle_seed=0, progress=not quiet)
    else:
        amortizer = AutoAmortizer.for_state(
            state, backbone, weights=weights, adapter=adapter, dtype=dtype, revision=revision
        )
    found = audits.audit(amortizer, state, inputs, outputs)
    if output is not None:
        lines = [json.dumps(dataclasses.asdict(finding), ensure_ascii=False) for finding in found.findings]
        write_whole(output, ("\n".join(lines) + "\n").encode())
    if plot is not None:
        write_whole(plot, confusion_plot(found.matrix, found.labels, f"{len(records):,} examples"))
    counts = {issue: found.count(issue) for issue in (audits.LABEL, audits.DUPLICATE, audits.UNINFORMATIVE)}
    confused = [dataclasses.asdict(pair) for pair in found.confusions]
    if not as_json and processes.first() and output != Path("/dev/stdout"):
        worst = [
            [one.input[:WIDTH], _named(one.output), _likelier(one), f"{one.wrong:.2f}", str(one.row)]
            for one in found.findings[:SHOWN]
        ]
        print_table([["text", "label", "likelier", "wrong", "row"], *worst])
        if confused:
            pairs = [[pair.first, pair.second, f"{pair.share:.2f}"] for pair in found.confusions[:SHOWN]]
            print_table([["label", "and", "share mistaken"], *pairs])
    text = (
        f"{len(records):,} examples: {counts[audits.LABEL]:,} with a label that is probably wrong, "
        f"{counts[audits.DUPLICATE]:,} whose text has another label elsewhere, {counts[audits.UNINFORMATIVE]:,} "
        "without a signal"
    )
    report({"examples": len(records), "issues": counts, "confusions": confused}, as_json, text, output)


def _likelier(one: Finding) -> str:
    """What probably applies in the label's place, where that is another one."""
    same = one.suggestion == one.output or (
        isinstance(one.output, tuple) and isinstance(one.suggestion, tuple) and {*one.suggestion} == {*one.output}
    )
    return "-" if same else _named(one.suggestion)


def _named(output: str | tuple[str, ...]) -> str:
    """A label, or several, in a table's cell."""
    return output if isinstance(output, str) else ", ".join(output) or "(none)"
