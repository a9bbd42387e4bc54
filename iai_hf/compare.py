"""Compare methods on one task: accuracy against examples seen, with seconds, state bytes and query time beside it."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf import __version__
from iai_hf.auto import AutoAmortizer
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.curve import Curve, headline, marks
from iai_hf.data import TEST, TRAIN, Columns, open_stream
from iai_hf.errors import DataError, StateError
from iai_hf.files import CURVE_FILE, check_own, write_whole
from iai_hf.methods import check_task
from iai_hf.task import TaskSpec

if TYPE_CHECKING:
    from iai_hf.amortizer import Amortizer

log = logging.getLogger(__name__)
RESULTS_FILE = "results.json"


def compare(
    data: Any,
    test: Any,
    methods: Sequence[str],
    *,
    task: TaskSpec | None = None,
    columns: Columns | None = None,
    split: str = TRAIN,
    test_split: str = TEST,
    allow_unseen_labels: bool = False,
    backbone: str | None = None,
    dtype: str | None = None,
    config: Mapping[str, Mapping[str, Any]] | None = None,
    max_examples: Mapping[str, int] | None = None,
    chunk_size: int = 64,
    max_test_examples: int | None = None,
    shuffle_seed: int | None = None,
    evaluations: int = 5,
    output: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Adapt each method on `data` and evaluate it on `test` as the examples arrive.

    Args:
        data: as `open_stream` takes it; what can be read once only is refused where there are several methods.
        methods: names or folders.
        split, test_split: of a Hub dataset or a dictionary of splits.
        allow_unseen_labels: count test labels that the data never show as errors, instead of refusing them.
        backbone: for all methods; by default each has its own.
        dtype: of the backbones, see `load_backbone`.
        config: settings by method.
        max_examples: limit by method, e.g. where a method costs much more than another.
        evaluations: points on each curve, spaced by a constant factor and ending with the last example.
        output: folder in which each run's last state is saved, under its name of `run_names`.

    Returns:
        What `results.json` holds: a list `methods`, each with its `curve` (`examples`, metrics, `adapt_seconds`) and
        `state_bytes`, `milliseconds_per_query` at the end.
    """
    stream = open_stream(data, columns, split=split, shuffle_seed=shuffle_seed)
    records = list(open_stream(test, columns, split=test_split).records())
    if max_test_examples is not None:
        stride = max(len(records) // max_test_examples, 1)  # a test file may be sorted by class
        records = records[::stride][:max_test_examples]
    if not records:
        raise DataError("the test data has no examples; expected at least one")
    inputs, outputs = [record.input for record in records], [record.output for record in records]
    loaded: dict[str, Backbone] = {}
    results = []
    # All first: a method that is not known, or not for this backbone or task, is told before hours of work.
    amortizers = [_load(method, backbone, dtype, (config or {}).get(method), loaded) for method in methods]
    for method, amortizer in zip(methods, amortizers, strict=True):
        check_task(amortizer, stream.task(task, (max_examples or {}).get(method), amortizer.max_labels))
    for method, name, amortizer in zip(methods, run_names(methods), amortizers, strict=True):
        log.info("%s", name)
        limit = (max_examples or {}).get(method)
        run = Curve(amortizer, inputs, outputs, allow_unseen_labels=allow_unseen_labels)
        total = min(limit or 10**12, stream.length or limit or 10**12)
        points = marks(chunk_size, total, evaluations)
        spec = stream.task(task, limit, amortizer.max_labels)
        run.check(spec, stream.outputs_until(limit))
        state = amortizer.init_state(spec)
        run.start()
        state = amortizer.adapt(
            stream,
            state,
            columns=columns,
            chunk_size=chunk_size,
            max_examples=limit,
            shuffle_seed=shuffle_seed,
            on_step=run.evaluate_at(points),
            progress=progress,
        )
        run.check(state.task)
        run.evaluate(state)
        if output is not None:
            state.save_pretrained(output / name)
        results.append({"method": name, "backbone": amortizer.backbone.name, **run.record(state)})
    return {"library_version": __version__, "test_examples": len(inputs), "methods": results}


def run_names(methods: Sequence[str]) -> list[str]:
    """A name for each run, none of them twice: the method's, or that of its folder, with a number where need be."""
    names: list[str] = []
    for method in methods:
        plain = Path(method).resolve().name
        numbered = (f"{plain}-{number}" for number in itertools.count(2))
        names.append(next(name for name in itertools.chain([plain], numbered) if name not in names))
    return names


def _load(
    method: str,
    backbone: str | None,
    dtype: str | None,
    config: Mapping[str, Any] | None,
    loaded: dict[str, Backbone],
) -> Amortizer:
    name = AutoAmortizer.describe(method)["backbone"] if backbone is None else backbone
    if name not in loaded:
        loaded[name] = load_backbone(name, dtype=dtype)
    return AutoAmortizer.from_pretrained(method, backbone=loaded[name], config=config)


def table(results: Mapping[str, Any]) -> list[list[str]]:
    """Header and one row a method, as text."""
    metric = headline(results["methods"][0]["curve"])
    rows = [["method", "backbone", "examples", metric.replace("_", " "), "adapt s", "state kB", "ms / query"]]
    for run in results["methods"]:
        rows.append(
            [
                run["method"],
                run["backbone"].split("/")[-1],
                f"{run['examples']:,}",
                f"{run['curve'][-1][metric]:.3f}",
                f"{run['adapt_seconds']:.1f}",
                f"{run['state_bytes'] / 1000:.0f}",
                f"{run['milliseconds_per_query']:.1f}",
            ]
        )
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    rule = ["---" if i < 2 else "---:" for i in range(len(rows[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]]) + "\n"


def check_folder(directory: Path) -> None:
    """Raise StateError where saving would overwrite another program's `results.json`."""
    check_own(directory / RESULTS_FILE, ("library_version", "methods"), "the results.json of a comparison")


def save(results: Mapping[str, Any], directory: str | Path, title: str) -> Path:
    """Write `results.json`, `results.md` and `curve.png` into a folder.

    Raises:
        StateError: the folder can't be written, or holds another program's results.
    """
    from iai_hf.plots import curve_plot

    directory = Path(directory)
    check_folder(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(directory / RESULTS_FILE, json.dumps(results, indent=2).encode())
        write_whole(directory / "results.md", markdown(table(results)).encode())
        write_whole(
            directory / CURVE_FILE, curve_plot(results["methods"], headline(results["methods"][0]["curve"]), title)
        )
    except OSError as error:
        raise StateError(f"can't write results to {directory}: {error.strerror or error}") from error
    return directory
