"""Command line `iai`. Torch and transformers are imported by the commands, so that `--help` answers at once."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_hf.errors import ConfigError, DataError, IAIError, StateError

if TYPE_CHECKING:
    from iai_hf.data import Columns, Record
    from iai_hf.task import TaskSpec

app = typer.Typer(
    name="iai",
    help="Adapt a pretrained backbone to a labelled dataset of any length, chunk by chunk, and answer from the state.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataOption = Annotated[
    str, typer.Option("--data", help="JSONL, CSV or Parquet file, or Hub dataset id (id or id:config).")
]
InputColumn = Annotated[str, typer.Option(help="Column with the text.")]
OutputColumn = Annotated[str, typer.Option(help="Column with the answer.")]
Split = Annotated[str, typer.Option(help="Split of a Hub dataset.")]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="Hub id or folder; by default the method's own.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the method, KEY=VALUE; may be repeated.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Read only so many tokens of a text; recorded in the state.")]
ChunkSize = Annotated[int, typer.Option(min=1, help="Examples an update.")]
ShuffleSeed = Annotated[int | None, typer.Option("--shuffle-seed", help="Read in an order permuted from this seed.")]
KindOption = Annotated[
    str | None, typer.Option("--kind", help="classification or generation; by default told from the data.")
]
Labels = Annotated[str | None, typer.Option(help="Label names known ahead, separated by commas.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar, only warnings.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


@app.command()
def adapt(
    method: Annotated[
        str, typer.Argument(metavar="METHOD_OR_PATH", help="Method, folder of an amortizer, or a state to go on from.")
    ],
    data: DataOption,
    output: Annotated[Path, typer.Option("--output", help="Folder for the state.")],
    backbone: BackboneOption = None,
    chunk_size: ChunkSize = 64,
    max_examples: Annotated[int | None, typer.Option(min=1, help="Stop after so many examples.")] = None,
    max_tokens: MaxTokens = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the state in --output was left.")] = False,
    checkpointing_steps: Annotated[int, typer.Option(min=1, help="Save the state every so many chunks.")] = 20,
    shuffle_seed: ShuffleSeed = None,
    kind: KindOption = None,
    labels: Labels = None,
    settings: Settings = None,
    input_column: InputColumn = "input",
    output_column: OutputColumn = "output",
    split: Split = "train",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Stream a dataset through a method and save the task state."""
    start_logging(quiet)
    from iai_hf.auto import AutoAmortizer
    from iai_hf.state import STATE_FILE, TaskState, check_writable

    standing = (output / STATE_FILE).is_file()
    if standing and not resume:
        raise StateError(f"{output} holds a state already; pass --resume to go on with it, or choose another folder")
    if not Path(data).exists() and Path(data).suffix:
        raise DataError(f"no file at {data}")
    check_writable(output)
    state = None
    if standing:
        state = TaskState.from_pretrained(output)
    elif (Path(method) / STATE_FILE).is_file():
        state = TaskState.from_pretrained(method)
    config = parse_settings(settings) | ({"max_tokens": max_tokens} if max_tokens is not None else {})
    amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone, config=config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # accelerate launch -m iai_hf.cli adapt ...
        amortizer.backbone.split_over_processes()
    state = amortizer.adapt(
        data,
        state,
        task=task_spec(kind, labels),
        columns=columns(input_column, output_column),
        split=split,
        chunk_size=chunk_size,
        max_examples=max_examples,
        shuffle_seed=shuffle_seed,
        resume=standing,
        output=output,
        checkpointing_steps=checkpointing_steps,
        progress=not quiet,
    )
    report(describe(state), as_json, f"{state.header.examples:,} examples in {state.nbytes / 1000:,.0f} kB at {output}")


@app.command()
def merge(
    states: Annotated[list[Path], typer.Argument(metavar="STATE_DIR...", help="States of parts of one task's data.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for the merged state.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge states that were made from disjoint parts of the data."""
    start_logging(quiet)
    from iai_hf.auto import AutoAmortizer
    from iai_hf.state import STATE_FILE, TaskState, check_writable

    if (output / STATE_FILE).is_file():
        raise StateError(f"{output} holds a state already; choose another folder")
    check_writable(output)
    parts = [TaskState.from_pretrained(path) for path in states]
    merged = AutoAmortizer.for_state(parts[0]).merge(parts)
    merged.save_pretrained(output)
    report(
        describe(merged), as_json, f"{merged.header.examples:,} examples in {merged.nbytes / 1000:,.0f} kB at {output}"
    )


@app.command()
def export(
    state_dir: Annotated[Path, typer.Argument(metavar="STATE_DIR", help="Folder with a state.")],
    peft: Annotated[Path, typer.Option("--peft", help="Folder for the PEFT adapter.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a state as a PEFT adapter, which `PeftModel.from_pretrained` loads without this package."""
    start_logging(quiet)
    from iai_hf.auto import AutoAmortizer
    from iai_hf.peft_export import ADAPTER_CONFIG
    from iai_hf.state import TaskState, check_writable

    if (peft / ADAPTER_CONFIG).is_file():
        raise StateError(f"{peft} holds an adapter already; choose another folder")
    state = TaskState.from_pretrained(state_dir)
    amortizer = AutoAmortizer.for_state(state)
    check_writable(peft)
    amortizer.export(state, peft)
    size = sum(path.stat().st_size for path in peft.iterdir())
    report({"output": str(peft), "bytes": size}, as_json, f"PEFT adapter of {size / 1000:,.0f} kB at {peft}")


@app.command()
def predict(
    state_dir: Annotated[Path, typer.Argument(metavar="STATE_DIR", help="Folder with a state.")],
    data: DataOption,
    output: Annotated[Path, typer.Option("--output", help="JSONL file for the predictions.")],
    input_column: InputColumn = "input",
    split: Split = "train",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Answer every input of a dataset."""
    start_logging(quiet)
    from iai_hf.auto import AutoAmortizer
    from iai_hf.data import Columns
    from iai_hf.state import TaskState, check_writable, write_whole

    check_writable(output.parent)
    state = TaskState.from_pretrained(state_dir)
    records = read_records(data, Columns(input_column, None), split)
    amortizer = AutoAmortizer.for_state(state)
    lines = []
    for batch in batches(records, quiet):
        prediction = amortizer.predict(state, [record.input for record in batch])
        sure = (
            [None] * len(batch) if prediction.log_probs is None else prediction.log_probs.max(1).values.exp().tolist()
        )
        for record, answer, probability in zip(batch, prediction.outputs, sure, strict=True):
            row = {"input": record.input, "prediction": answer}
            lines.append(json.dumps(row if probability is None else row | {"probability": round(probability, 6)}))
    write_whole(output, ("\n".join(lines) + "\n").encode())
    report({"predictions": len(lines), "output": str(output)}, as_json, f"{len(lines):,} predictions in {output}")


@app.command()
def evaluate(
    state_dir: Annotated[Path, typer.Argument(metavar="STATE_DIR", help="Folder with a state.")],
    data: DataOption,
    output: Annotated[Path | None, typer.Option("--output", help="JSON file for the metrics.")] = None,
    allow_unseen_labels: Annotated[
        bool, typer.Option("--allow-unseen-labels", help="Count labels unknown to the state as errors.")
    ] = False,
    input_column: InputColumn = "input",
    output_column: OutputColumn = "output",
    split: Split = "test",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Accuracy, macro-F1, negative log-likelihood and calibration error, or exact match."""
    start_logging(quiet)
    import torch

    from iai_hf.auto import AutoAmortizer
    from iai_hf.metrics import check_labels, score
    from iai_hf.state import TaskState, check_writable, write_whole
    from iai_hf.task import Prediction

    if output is not None:
        check_writable(output.parent)
    state = TaskState.from_pretrained(state_dir)
    records = read_records(data, columns(input_column, output_column), split)
    outputs = [record.output for record in records]
    if state.task.kind == "classification" and not allow_unseen_labels:
        check_labels(state.task.labels, outputs)
    amortizer = AutoAmortizer.for_state(state)
    parts = [amortizer.predict(state, [record.input for record in batch]) for batch in batches(records, quiet)]
    scores = [part.log_probs for part in parts if part.log_probs is not None]
    whole = Prediction(
        tuple(answer for part in parts for answer in part.outputs),
        state.task.labels if scores else (),
        torch.cat(scores) if scores else None,
    )
    metrics = score(whole, outputs, allow_unseen_labels=allow_unseen_labels)
    result = {"examples": len(records), **metrics}
    if output is not None:
        write_whole(output, json.dumps(result, indent=2).encode())
    report(result, as_json, "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.items()))


@app.command()
def compare(
    data: DataOption,
    test: Annotated[str, typer.Option("--test", help="Test data, like --data.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for results.json, results.md and curve.png.")],
    methods: Annotated[str, typer.Option(help="Methods or folders, separated by commas.")] = "iterative,in-context",
    backbone: BackboneOption = None,
    chunk_size: ChunkSize = 64,
    max_examples: Annotated[str | None, typer.Option(help="N for all methods, or METHOD=N,METHOD=N.")] = None,
    max_test_examples: Annotated[int | None, typer.Option(min=1, help="Evaluate on so many, evenly spaced.")] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="Points on each curve.")] = 5,
    max_tokens: MaxTokens = None,
    shuffle_seed: ShuffleSeed = 0,
    kind: KindOption = None,
    labels: Labels = None,
    input_column: InputColumn = "input",
    output_column: OutputColumn = "output",
    title: Annotated[str | None, typer.Option(help="Title of the plot; by default the data's name.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare methods on one task: a table, results.json and a plot."""
    start_logging(quiet)
    from iai_hf import compare as comparing
    from iai_hf.state import check_writable

    check_writable(output)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise ConfigError("--methods names none; expected e.g. iterative,in-context")
    results = comparing.compare(
        data,
        test,
        names,
        task=task_spec(kind, labels),
        columns=columns(input_column, output_column),
        backbone=backbone,
        config={name: {"max_tokens": max_tokens} for name in names} if max_tokens else None,
        max_examples=parse_limits(max_examples, names),
        chunk_size=chunk_size,
        max_test_examples=max_test_examples,
        shuffle_seed=shuffle_seed,
        evaluations=evaluations,
        output=output,
        progress=not quiet,
    )
    comparing.save(results, output, title or Path(data).stem)
    if not as_json and not quiet:
        print_table(comparing.table(results))
    report(results, as_json, f"results.json, results.md and curve.png in {output}")


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="Folder of a state or an amortizer.")],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What a state or an amortizer is, without loading its backbone."""
    start_logging(quiet)
    from iai_hf.auto import AutoAmortizer
    from iai_hf.state import STATE_FILE, TaskState

    if (path / STATE_FILE).is_file() or path.is_file():
        content = describe(TaskState.from_pretrained(path))
    elif path.is_dir():
        content = AutoAmortizer.describe(path)
    else:
        raise StateError(f"nothing at {path}; expected a folder with a state or an amortizer")
    report(content, as_json, "\n".join(f"{key}: {value}" for key, value in content.items()))


def start_logging(quiet: bool) -> None:
    """Progress and log lines on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("iai_hf").setLevel(logging.WARNING if quiet else logging.INFO)
    if quiet:
        import datasets

        datasets.disable_progress_bars()


def report(content: dict[str, Any], as_json: bool, text: str) -> None:
    """The result, on standard output; of several processes, the first speaks."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False) if as_json else text)


def describe(state: Any) -> dict[str, Any]:
    """The header of a state, and what its tensors weigh."""
    header = json.loads(state.header.to_json())
    task = header.pop("task")
    return {
        **header,
        "kind": task["kind"],
        "labels": task["labels"],
        "bytes": state.nbytes,
        "tensors": {name: list(tensor.shape) for name, tensor in state.tensors.items()},
    }


def columns(input_column: str, output_column: str) -> Columns:
    from iai_hf.data import Columns

    return Columns(input_column, output_column)


def task_spec(kind: str | None, labels: str | None) -> TaskSpec | None:
    """The task as far as the command line tells it."""
    from iai_hf.task import TaskSpec

    if kind is None and labels is None:
        return None
    names = tuple(name.strip() for name in (labels or "").split(",") if name.strip())
    return TaskSpec(kind or "classification", names)  # type: ignore[arg-type]


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE pairs, values read as JSON where they are JSON."""
    values: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r} has no '='; expected KEY=VALUE, e.g. budget=512")
        try:
            values[key.strip()] = json.loads(text)
        except ValueError:
            values[key.strip()] = text
    return values


def parse_limits(text: str | None, methods: list[str]) -> dict[str, int] | None:
    """`N` or `METHOD=N,METHOD=N`."""
    if text is None:
        return None
    limits: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        if not number.strip().isdecimal() or int(number) < 1 or (name and name.strip() not in methods):
            raise ConfigError(f"--max-examples {text!r}; expected N, or METHOD=N of {', '.join(methods)}")
        limits |= {name.strip(): int(number)} if name else dict.fromkeys(methods, int(number))
    return limits


def read_records(data: str, chosen: Columns, split: str) -> list[Record]:
    """All records of a dataset that is to be answered."""
    from iai_hf.data import open_stream

    records = list(open_stream(data, chosen, split=split).records())
    if not records:
        raise DataError(f"{data} has no examples; expected at least one")
    return records


def batches(records: list[Record], quiet: bool) -> Any:
    """Records in batches, under a progress bar."""
    from huggingface_hub.utils import tqdm

    size = 256
    with tqdm(total=len(records), unit=" queries", desc="predict", disable=True if quiet else None) as bar:
        for first in range(0, len(records), size):
            yield records[first : first + size]
            bar.update(len(records[first : first + size]))


def print_table(rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows[1:]:
        table.add_row(*row)
    Console().print(table)


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit status 2."""
    try:
        app()
    except IAIError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
