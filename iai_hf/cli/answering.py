"""Commands that answer and measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iai_hf.cli.options import (
    Abstain,
    AllowUnseenLabels,
    AnswerSettings,
    Coverage,
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
    Target,
    Transductive,
    batches,
    columns,
    parse_settings,
    read_records,
    report,
    rows_of,
    start_logging,
    state_files,
    to_standard_output,
)
from iai_hf.errors import ConfigError

if TYPE_CHECKING:
    from iai_hf.amortizer import Amortizer
    from iai_hf.data import Record
    from iai_hf.state import TaskState
    from iai_hf.task import Prediction

TABLES = (".csv", ".tsv", ".parquet", ".xlsx")  # what predictions are not written as
app = typer.Typer()


@app.command()
def predict(
    state_dir: StateDir,
    data: DataOption,
    output: Annotated[
        Path, typer.Option("--output", help="JSONL file for the predictions.", callback=to_standard_output)
    ],
    transductive: Transductive = False,
    coverage: Coverage = None,
    abstain: Abstain = None,
    backbone: StateBackbone = None,
    revision: StateRevision = None,
    weights: StateWeights = None,
    adapter: StateAdapter = None,
    dtype: Dtype = None,
    settings: AnswerSettings = None,
    input_column: InputColumn = "input",
    split: Split = None,
    quotes: Quotes = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Answer every input of a dataset."""
    start_logging(quiet)
    from iai_hf.auto import AutoAmortizer
    from iai_hf.files import check_output, check_own_lines, write_whole
    from iai_hf.state import TaskState

    check_output(output, data, *state_files(state_dir))
    check_own_lines(output, ("input", "prediction"), "a file of predictions")
    if output.suffix.lower() in TABLES:
        raise ConfigError(
            f"predictions are written as JSON lines, not {output.suffix}; name the output e.g. answers.jsonl"
        )
    state = TaskState.from_pretrained(state_dir)
    records = read_records(data, columns(input_column, None, None, state, quotes), split)
    config = parse_settings(settings)
    amortizer = AutoAmortizer.for_state(
        state, backbone, config=config, weights=weights, adapter=adapter, dtype=dtype, revision=revision
    )
    whole = _answers(amortizer, state, records, quiet, transductive, coverage, abstain)
    rows = zip(records, rows_of(whole), strict=True)
    lines = [json.dumps({"input": record.input} | row) for record, row in rows]
    write_whole(output, ("\n".join(lines) + "\n").encode())
    content = {"predictions": len(lines), "output": str(output)}
    report(content, as_json, f"{len(lines):,} predictions in {output}", output)


@app.command()
def evaluate(
    state_dir: StateDir,
    data: DataOption,
    output: Annotated[
        Path | None, typer.Option("--output", help="JSON file for the metrics.", callback=to_standard_output)
    ] = None,
    allow_unseen_labels: AllowUnseenLabels = False,
    transductive: Transductive = False,
    coverage: Coverage = None,
    abstain: Abstain = None,
    backbone: StateBackbone = None,
    revision: StateRevision = None,
    weights: StateWeights = None,
    adapter: StateAdapter = None,
    dtype: Dtype = None,
    settings: AnswerSettings = None,
    input_column: InputColumn = "input",
    output_column: OutputColumn = "output",
    target: Target = None,
    split: Split = None,
    quotes: Quotes = None,
    label_separator: LabelSeparator = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Accuracy, F1, negative log-likelihood, calibration error; exact match; of a regression; of label sets.

    These count every likeliest label; --coverage and --abstain add how the sets and the answers that were given did.
    """
    start_logging(quiet)
    from iai_hf.auto import AutoAmortizer
    from iai_hf.files import check_output, check_own, write_whole
    from iai_hf.metrics import answered, check_labels, covered, score
    from iai_hf.state import TaskState
    from iai_hf.task import LABELLED, check_sets

    if output is not None:
        check_output(output, data, *state_files(state_dir))
        check_own(output, ("examples",), "a file of metrics", absent=("method",))
    state = TaskState.from_pretrained(state_dir)
    names = columns(input_column, output_column, target, state, quotes, label_separator)
    records = read_records(data, names, split, state.header.read)
    outputs = [record.output for record in records]
    check_sets(state.task, outputs)
    if state.task.kind in LABELLED and not allow_unseen_labels:
        check_labels(state.task.labels, outputs)
    config = parse_settings(settings)
    amortizer = AutoAmortizer.for_state(
        state, backbone, config=config, weights=weights, adapter=adapter, dtype=dtype, revision=revision
    )
    whole = _answers(amortizer, state, records, quiet, transductive, coverage, abstain)
    metrics = score(whole, outputs, allow_unseen_labels=allow_unseen_labels)
    if whole.sets is not None:
        metrics |= covered(whole.sets, outputs)
    if abstain is not None:
        metrics |= answered(whole.outputs, outputs)
    result = {"examples": len(records), **metrics}
    if output is not None:
        write_whole(output, json.dumps(result, indent=2).encode())
    text = "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.items())
    report(result, as_json, text, output)


def _answers(
    amortizer: Amortizer,
    state: TaskState,
    records: list[Record],
    quiet: bool,
    transductive: bool,
    coverage: float | None,
    abstain: float | None,
) -> Prediction:
    """The answers to all records, in batches, but for queries that inform each other."""
    from iai_hf.task import Prediction

    return Prediction.joined(
        [
            amortizer.predict(
                state,
                [record.input for record in batch],
                transductive=transductive,
                coverage=coverage,
                abstain=abstain,
            )
            for batch in batches(records, quiet, len(records) if transductive else 256)
        ]
    )
