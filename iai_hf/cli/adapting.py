"""Commands that adapt, merge and compare."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from iai_hf import processes
from iai_hf.cli.options import (
    AllowMissingOutputs,
    AllowUnseenLabels,
    BackboneOption,
    ChunkSize,
    DataOption,
    Dtype,
    InputColumn,
    Json,
    KindOption,
    Labels,
    LabelSeparator,
    MaxTokens,
    OutputColumn,
    Quiet,
    Quotes,
    Settings,
    ShuffleSeed,
    Split,
    StateAdapter,
    StateBackbone,
    StateRevision,
    StateWeights,
    Target,
    TestSplit,
    UnlabelledOption,
    Watch,
    a_folder,
    chosen_split,
    columns,
    describe,
    hold,
    hold_new,
    interruptible,
    noticed,
    parse_limits,
    parse_settings,
    print_table,
    read_records,
    report,
    start_logging,
    task_spec,
    watching,
)
from iai_hf.data import TEST, TRAIN
from iai_hf.errors import ConfigError, StateError

log = logging.getLogger(__name__)

app = typer.Typer()


@app.command()
def adapt(
    context: typer.Context,
    method: Annotated[
        str, typer.Argument(metavar="METHOD_OR_PATH", help="Method, folder of an amortizer, or a state to go on from.")
    ],
    data: DataOption,
    output: Annotated[Path, typer.Option("--output", help="Folder for the state.", callback=a_folder)],
    unlabelled: UnlabelledOption = None,
    watch: Watch = False,
    allow_missing_outputs: AllowMissingOutputs = False,
    backbone: BackboneOption = None,
    dtype: Dtype = None,
    chunk_size: ChunkSize = 64,
    max_examples: Annotated[int | None, typer.Option(min=1, help="Stop after so many examples.")] = None,
    max_tokens: MaxTokens = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the state in --output was left.")] = False,
    checkpointing_steps: Annotated[int, typer.Option(min=1, help="Save the state every so many chunks.")] = 20,
    shuffle_seed: ShuffleSeed = None,
    test: Annotated[
        str | None, typer.Option("--test", help="Test data: evaluation.json and curve.png go beside the state.")
    ] = None,
    test_split: TestSplit = None,
    allow_unseen_labels: AllowUnseenLabels = False,
    evaluations: Annotated[int, typer.Option(min=1, help="Points on the curve of --test.")] = 5,
    kind: KindOption = None,
    labels: Labels = None,
    settings: Settings = None,
    input_column: InputColumn = "input",
    output_column: OutputColumn = "output",
    target: Target = None,
    split: Split = None,
    quotes: Quotes = None,
    label_separator: LabelSeparator = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Stream a dataset through a method and save the task state."""
    start_logging(quiet)
    from iai_hf.auto import AutoAmortizer
    from iai_hf.curve import Curve, marks
    from iai_hf.data import open_stream
    from iai_hf.files import STATE_FILE
    from iai_hf.readers import check_file, is_file
    from iai_hf.state import TaskState, check_folder

    hold(context, output)
    check_folder(output)
    standing = (output / STATE_FILE).is_file()
    if standing and not resume:
        raise StateError(
            f"{output} holds a state already; pass --resume to go on in the same data, or choose another folder; to "
            f"adapt it to more data: iai adapt {output} --data MORE --output ANOTHER"
        )
    for given in (data, unlabelled):
        if given is not None and is_file(given):
            check_file(Path(given))
    state = None
    if resume and not standing:
        log.warning("there is no state to resume in %s: it is begun", output)
    if standing:
        state = TaskState.from_pretrained(output)
    elif (Path(method) / STATE_FILE).is_file():
        state = TaskState.from_pretrained(method)
    config = parse_settings(settings)
    if max_tokens is not None:
        if config.setdefault("max_tokens", max_tokens) not in (max_tokens, str(max_tokens)):
            raise ConfigError(
                f"--max-tokens is {max_tokens}, --set max_tokens {config['max_tokens']}; give one of them"
            )
        config["max_tokens"] = max_tokens
    config |= watching(watch, method, config, state)
    # Each process has a device of its own, for which the backbone is loaded.
    place = {"device": processes.Group.joined().device} if processes.several() else {}
    amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone, config=config, dtype=dtype, **place)
    if processes.several():
        amortizer.backbone.split_over_processes()
    if amortizer.reads == "numbers" and target is None and state is None:
        raise ConfigError(f"{method!r} reads a table of numbers; name the column to predict with --target")
    names = columns(input_column, output_column, target, state, quotes, label_separator)
    read = replace(names, allow_missing_outputs=allow_missing_outputs)
    stream = open_stream(data, read, split=chosen_split(data, split, TRAIN), shuffle_seed=shuffle_seed)
    curve = None
    if test is not None:
        records = read_records(test, names, test_split, (*stream.known_as, *(state.header.read if state else ())))
        inputs, outputs = [record.input for record in records], [record.output for record in records]
        curve = Curve(amortizer, inputs, outputs, Path(test).stem, output, allow_unseen_labels=allow_unseen_labels)
        task = (
            state.task
            if state is not None
            else stream.task(task_spec(kind, labels), max_examples, amortizer.max_labels)
        )
        curve.check(task, stream.outputs_until(max_examples))
        if standing and state is not None:
            curve.resume(state)
        points = marks(chunk_size, max_examples or stream.length or 10**6, evaluations)
    with interruptible(output):
        state = amortizer.adapt(
            stream,
            state,
            task=task_spec(kind, labels),
            columns=read,
            unlabelled=unlabelled,
            chunk_size=chunk_size,
            max_examples=max_examples,
            shuffle_seed=shuffle_seed,
            resume=resume and state is not None,
            output=output,
            checkpointing_steps=checkpointing_steps,
            on_step=None if curve is None else curve.evaluate_at(points),
            progress=not quiet,
        )
    if curve is not None:
        curve.check(state.task)
        curve.evaluate(state)
        curve.save(state)
    labels_of = state.task.labels
    shown = f", {len(labels_of)} labels: {', '.join(labels_of[:6])}{', ...' if len(labels_of) > 6 else ''}"
    told = f"\n{state.task.kind}{shown if labels_of else ''}"
    told += "".join(f"\n{name}: {value}" for name, value in amortizer.summary(state).items())
    size = f"{state.header.examples:,} examples in {state.nbytes / 1000:,.0f} kB at {output}"
    report({**describe(state), **noticed(amortizer, state)}, as_json, size + told)


@app.command()
def merge(
    context: typer.Context,
    states: Annotated[list[Path], typer.Argument(metavar="STATE_DIR...", help="States of parts of one task's data.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for the merged state.", callback=a_folder)],
    backbone: StateBackbone = None,
    revision: StateRevision = None,
    weights: StateWeights = None,
    adapter: StateAdapter = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Merge states that were made from disjoint parts of the data."""
    start_logging(quiet)
    from iai_hf.auto import AutoAmortizer
    from iai_hf.state import TaskState

    hold_new(context, output)
    parts = [TaskState.from_pretrained(path) for path in states]
    made_by = AutoAmortizer.for_state(parts[0], backbone, weights=weights, adapter=adapter, revision=revision)
    merged = made_by.merge(parts)
    merged.save_pretrained(output)
    report(
        describe(merged), as_json, f"{merged.header.examples:,} examples in {merged.nbytes / 1000:,.0f} kB at {output}"
    )


@app.command()
def compare(
    context: typer.Context,
    data: DataOption,
    test: Annotated[str, typer.Option("--test", help="Test data, like --data.")],
    output: Annotated[
        Path, typer.Option("--output", help="Folder for results.json, results.md and curve.png.", callback=a_folder)
    ],
    methods: Annotated[str, typer.Option(help="Methods or folders, separated by commas.")] = "iterative,in-context",
    backbone: BackboneOption = None,
    dtype: Dtype = None,
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
    split: Split = None,
    test_split: TestSplit = None,
    quotes: Quotes = None,
    label_separator: LabelSeparator = None,
    allow_unseen_labels: AllowUnseenLabels = False,
    title: Annotated[str | None, typer.Option(help="Title of the plot; by default the data's name.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare methods on one task: a table, results.json and a plot."""
    start_logging(quiet)
    from iai_hf import compare as comparing

    hold(context, output)
    comparing.check_folder(output)
    names = [name.strip() for name in methods.split(",") if name.strip()]
    if not names:
        raise ConfigError("--methods names none; expected e.g. iterative,in-context")
    results = comparing.compare(
        data,
        test,
        names,
        task=task_spec(kind, labels),
        columns=columns(input_column, output_column, quotes=quotes, label_separator=label_separator),
        split=chosen_split(data, split, TRAIN),
        test_split=chosen_split(test, test_split, TEST),
        allow_unseen_labels=allow_unseen_labels,
        backbone=backbone,
        dtype=dtype,
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
