"""Options that several commands share, and what they are read into."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from iai_hf import processes
from iai_hf.config import Written
from iai_hf.data import TEST, TRAIN, Columns
from iai_hf.errors import ConfigError, DataError, StateError
from iai_hf.terminated import ending, terminable

if TYPE_CHECKING:
    from iai_hf.data import Record
    from iai_hf.task import Prediction, TaskSpec

log = logging.getLogger(__name__)
DataOption = Annotated[
    str, typer.Option("--data", help="JSONL, CSV, TSV or Parquet file, or Hub dataset id (id or id:config).")
]
InputColumn = Annotated[str, typer.Option(help="Column with the text.")]
OutputColumn = Annotated[str, typer.Option(help="Column with the answer.")]
Target = Annotated[
    str | None, typer.Option("--target", help="Numeric table: the column to predict; all others are its inputs.")
]
SPLITS = f"of a Hub dataset; by default {TRAIN} to learn from, {TEST} to answer or to measure."
Split = Annotated[str | None, typer.Option(help=f"Split {SPLITS}")]
TestSplit = Annotated[str | None, typer.Option(help=f"Split of --test, {SPLITS}")]
Quotes = Annotated[
    bool | None,
    typer.Option(
        "--quotes/--no-quotes",
        help="Quotation marks in CSV and TSV enclose fields, or are part of the texts; by default they enclose fields, "
        "and what may be rows between them is refused.",
        show_default=False,
    ),
]
AllowUnseenLabels = Annotated[
    bool, typer.Option("--allow-unseen-labels", help="Count test labels unknown to the state as errors.")
]
UnlabelledOption = Annotated[
    str | None,
    typer.Option("--unlabelled", help="Texts of the task without labels, like --data: their inputs alone are read."),
]
AllowMissingOutputs = Annotated[
    bool,
    typer.Option("--allow-missing-outputs", help="Rows of --data without an output are unlabelled ones, no error."),
]
Transductive = Annotated[
    bool, typer.Option("--transductive", help="Let the inputs inform each other, as unlabelled texts; all at once.")
]
Coverage = Annotated[
    float | None,
    typer.Option("--coverage", help="Add sets of labels, of which this share at least holds the right one, e.g. 0.9."),
]
Abstain = Annotated[
    float | None,
    typer.Option(
        "--abstain", help="Answer null to texts unlike all that were read; at most to this share of others, e.g. 0.05."
    ),
]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="Hub id or folder; by default the method's own.")
]
StateDir = Annotated[Path, typer.Argument(metavar="STATE_DIR", help="Folder with a state.")]
StateBackbone = Annotated[
    str | None,
    typer.Option("--backbone", help="Hub id or folder of the state's backbone, where it is elsewhere now."),
]
StateRevision = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of the backbone, where the state's own is gone.")
]
StateWeights = Annotated[
    str | None,
    typer.Option("--weights", help="Repository or folder of the amortizer that made the state, where it is elsewhere."),
]
StateAdapter = Annotated[
    str | None, typer.Option("--adapter", help="Repository or folder of the state's feature adapter, likewise.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the method, KEY=VALUE; may be repeated.")
]
AnswerSettings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of answering, KEY=VALUE, e.g. max_new_tokens=100; may be repeated."),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        help="Of the backbone, float32 or bfloat16; by default bfloat16 where the machine has it. In float32 an answer "
        "does not depend on what is asked beside it.",
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Read only so many tokens of a text; recorded in the state.")
]
ChunkSize = Annotated[int, typer.Option(min=1, help="Examples an update.")]
Watch = Annotated[bool, typer.Option("--watch", help="Notice where the stream changes, and go on from there.")]
ShuffleSeed = Annotated[
    int | None, typer.Option("--shuffle-seed", min=0, help="Read in an order permuted from this seed.")
]
KindOption = Annotated[
    str | None,
    typer.Option(
        "--kind", help="classification, multi-label, generation or regression; by default told from the data."
    ),
]
LabelSeparator = Annotated[
    str | None,
    typer.Option(
        "--label-separator",
        help="Between the labels of an output that is a text, as in CSV; an empty output has no label.",
    ),
]
Labels = Annotated[str | None, typer.Option(help="Label names known ahead, separated by commas.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar, only warnings.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def to_standard_output(path: Path | None) -> Path | None:
    """The file of an option, "-" being standard output, as other tools have it."""
    return Path("/dev/stdout") if path == Path("-") else path


def a_folder(path: Path) -> Path:
    """The folder of an option.

    Raises:
        ConfigError: it is "-", which is standard output elsewhere.
    """
    if path == Path("-"):
        raise ConfigError("--output is -, standard output; expected a folder, since there are several files: name one")
    return path


def start_logging(quiet: bool) -> None:
    """Progress and log lines on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("iai_hf").setLevel(logging.WARNING if quiet else logging.INFO)
    if quiet:
        import datasets

        datasets.disable_progress_bars()


def hold(context: typer.Context, folder: Path) -> None:
    """Hold the output folder until the command ends; of several processes, the first does.

    Raises:
        StateError: another run writes to it, or it can't be made or written.
    """
    if processes.first():
        from iai_hf.files import claimed

        context.with_resource(claimed(folder))


def hold_new(context: typer.Context, folder: Path) -> None:
    """As `hold`, of a folder for a new state.

    Raises:
        StateError: as `hold`, or a state or another thing's files are there already.
    """
    from iai_hf.state import STATE_FILE, check_folder

    hold(context, folder)
    check_folder(folder)
    if (folder / STATE_FILE).is_file():
        raise StateError(f"{folder} holds a state already; choose another folder")


@contextmanager
def interruptible(output: Path) -> Iterator[None]:
    """A run that Ctrl-C or SIGTERM end in one line, which says what is kept, and exit status 130 or 143."""
    from iai_hf.state import STATE_FILE

    try:
        with terminable():
            yield
    except KeyboardInterrupt as error:
        kept = (output / STATE_FILE).is_file()
        told = f"{output} holds what was read, --resume goes on with it" if kept else "nothing was read yet"
        word, status = ending(error)
        if processes.first():
            typer.echo(f"{word}; {told}", err=True)
        raise typer.Exit(status) from None


def state_files(state: Path) -> list[Path]:
    """What a command that reads `state` must not write over."""
    from iai_hf.hub import STATE_FILES

    return [state / name for name in STATE_FILES] if state.is_dir() else [state]


def report(content: dict[str, Any], as_json: bool, text: str, output: Path | None = None) -> None:
    """The result, on standard output, or aside where `output` may be that; of several processes, the first speaks."""
    from iai_hf.files import is_stream

    if processes.first():
        aside = output is not None and is_stream(output)
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False) if as_json else text, err=aside)


def describe(state: Any) -> dict[str, Any]:
    """The header of a state, and what its tensors weigh."""
    header = json.loads(state.header.to_json())
    task = header.pop("task")
    return {
        **header,
        "kind": task["kind"],
        "labels": task["labels"],
        **({"columns": task["columns"]} if task["columns"] else {}),
        "bytes": state.nbytes,
        "tensors": {name: list(tensor.shape) for name, tensor in state.tensors.items()},
    }


def watching(watch: bool, method: str, config: Mapping[str, Any], state: Any = None) -> dict[str, bool]:
    """What --watch sets, of a method or of a state that is gone on from.

    Raises:
        ConfigError: the method notices no changes, or --set says something else.
        StateError: the state is not watched, or it is and --watch is missing.
    """
    from iai_hf.auto import AutoAmortizer, amortizer_class
    from iai_hf.files import STATE_FILE
    from iai_hf.methods import check_watches

    watched = state is not None and bool(state.header.config.get("watch"))
    if not watch:
        if watched and "watch" not in config and not (Path(method) / STATE_FILE).is_file():
            raise StateError("the state is watched; go on with it as it began", options=["watch"])
        return {}
    check_watches(amortizer_class(AutoAmortizer.describe(method)["method"]))
    if str(config.get("watch", True)).lower() not in ("true", "yes"):
        raise ConfigError(f"--watch is given, and --set watch={config['watch']}; give one of them")
    if state is not None and not watched:
        raise StateError(
            "the state is not watched, and what it has read can't be watched afterwards; leave --watch out, or adapt "
            "anew with it"
        )
    return {"watch": True}


def noticed(amortizer: Any, state: Any) -> dict[str, Any]:
    """The changes that a watched state has noticed, for --json."""
    if not state.header.config.get("watch"):
        return {}
    return {"changes": [{**dataclasses.asdict(change), "told": str(change)} for change in amortizer.changes(state)]}


def columns(
    input_column: str,
    output_column: str | None,
    target: str | None = None,
    state: Any = None,
    quotes: bool | None = None,
    label_separator: str | None = None,
) -> Columns:
    """The names of the columns: of text and answer, or of a numeric table; of a state's own table where it has one."""
    if label_separator is not None and (target is not None or (state is not None and state.task.columns)):
        raise ConfigError("--label-separator is of texts with several labels; a table's rows have one target")
    if state is not None and target is not None:
        if not state.task.columns:
            raise ConfigError(f"the state reads texts, --target {target} is of tables; name columns of text instead")
        if target in state.task.columns:
            raise DataError(f"{target!r} is a column that the state reads, so it can't be its target; name another")
    if state is not None and state.task.columns:
        return Columns(input_column, target or output_column, state.task.columns, quotes)
    if target is None:
        return Columns(input_column, output_column, quotes=quotes, label_separator=label_separator)
    return Columns(input_column, target, (), quotes)


def task_spec(kind: str | None, labels: str | None) -> TaskSpec | None:
    """The task as far as the command line tells it."""
    from iai_hf.task import TaskSpec

    if kind is None and labels is None:
        return None
    names = tuple(name.strip() for name in (labels or "").split(",") if name.strip())
    if labels is not None and not names:
        raise ConfigError(f"--labels {labels!r} names none; expected e.g. positive,negative")
    return TaskSpec(kind or "classification", names)  # type: ignore[arg-type]


def parse_settings(settings: list[str] | None) -> dict[str, Any]:
    """KEY=VALUE pairs; a value is read by the type of its setting."""
    values: dict[str, Any] = {}
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {setting!r} is not a setting; expected KEY=VALUE, e.g. half_life=1000")
        values[key.strip()] = Written(text)
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


def chosen_split(data: str, split: str | None, default: str) -> str:
    """The split to read, by default that of the command.

    Raises:
        DataError: one is named for a file, which has none.
    """
    from iai_hf.readers import is_file

    if split is not None and is_file(data):
        raise DataError(
            f"{data} is a file, which has no split {split!r}; leave the split out, or name the split's file"
        )
    return split or default


def read_records(data: str, chosen: Columns, split: str | None, read: Collection[str] = ()) -> list[Record]:
    """All records of a dataset that is to be answered.

    Args:
        read: fingerprints of data that a state has learned from; that answers for these flatter it is told.
    """
    from iai_hf.data import open_stream

    stream = open_stream(data, chosen, split=chosen_split(data, split, TEST))
    if set(stream.known_as).intersection(read):
        log.warning("the state has learned from %s, so the figures say little of texts that it has not seen", data)
    records = list(stream.records())
    if not records:
        raise DataError(f"{data} has no examples; expected at least one")
    return records


def batches(records: list[Record], quiet: bool, size: int = 256) -> Any:
    """Records in batches, under a progress bar."""
    from huggingface_hub.utils import tqdm

    with tqdm(total=len(records), unit=" queries", desc="predict", disable=True if quiet else None) as bar:
        for first in range(0, len(records), size):
            yield records[first : first + size]
            bar.update(len(records[first : first + size]))


def rows_of(prediction: Prediction) -> list[dict[str, Any]]:
    """An answer as a line of a file has it: with its probability, or each label's where several may apply, its set."""
    if prediction.values is not None:
        return [{"prediction": value} for value in prediction.values.tolist()]
    rows: list[dict[str, Any]] = [{"prediction": output} for output in prediction.outputs]
    if prediction.log_probs is not None:
        sure = prediction.log_probs.max(1).values.exp().tolist()
        rows = [row | {"probability": round(share, 6)} for row, share in zip(rows, sure, strict=True)]
    if prediction.sets is not None:
        rows = [row | {"set": labels} for row, labels in zip(rows, prediction.sets, strict=True)]
    if prediction.probabilities is not None:
        each = [[round(share, 6) for share in shares] for shares in prediction.probabilities.tolist()]
        named = [dict(zip(prediction.labels, shares, strict=True)) for shares in each]
        return [row | {"probabilities": shares} for row, shares in zip(rows, named, strict=True)]
    return rows


def print_table(rows: list[list[str]]) -> None:
    """A table on standard output, numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*rows[0])
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows[1:]:
        table.add_row(*row)
    Console().print(table)
