"""What a watched state notices of streams that change, and how it goes on, beside other ways to go on.

    python scripts/comparison/measure_changes.py --data_dir META_TEST --output scripts/results/changes

After half of a task's examples the stream changes in one of four ways: every label comes to mean another class, half of
the labels do, half of the labels become eight times as frequent as the others, or every second word of a text is
missing. Told are the examples until a change of each kind was noticed, accuracy on what is true since, by the examples
read since, and what was noticed on streams that do not change, in several orders. River's adaptive random forest is
measured where `river` can be imported, on the first order and fewer queries. Means over tasks ± standard error over
orders, in OUTPUT/results.json and OUTPUT/results.md. What is in OUTPUT/results.json already is not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import numpy
import torch
from huggingface_hub.utils import tqdm
from sklearn.linear_model import LogisticRegression

from comparison import lab
from comparison.tasks import MAX_TOKENS, TASKS, Rows, Task, chunks
from iai_hf import AutoAmortizer, TaskSpec, TaskState, load_backbone
from iai_hf.amortizer import Amortizer
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.compare import markdown
from iai_hf.files import write_whole

MARKS = (16, 64, 256)  # examples since the change
SINCE = MARKS[-1]
KINDS = ("meaning", "half of the meaning", "frequencies", "texts")
NOTICED = ("meaning", "frequencies", "texts")  # what a state may say of it
FREQUENT = 8
WATCHED, FOREST = "iterative, watched", "adaptive random forest (river), first order, 100 queries"
STATES: dict[str, dict[str, Any]] = {
    WATCHED: {"watch": True},
    "iterative": {},
    "iterative, half-life 256": {"half_life": 256},
}
WINDOW, PENALTY, TREES = 256, 10.0, 10
WINDOWS = "logistic regression on the newest 256"
FOREST_QUERIES = 100


class Change(NamedTuple):
    """Of a stream: what comes since, and queries with what is true then."""

    later: Rows
    queries: list[str]
    answers: list[str]


def shortened(text: str) -> str:
    """Every second word."""
    return " ".join(text.split()[::2])


def drawn(rows: Rows, labels: tuple[str, ...], seed: int) -> Rows:
    """Rows among which the first half of the labels are `FREQUENT` times as frequent as they were beside the others."""
    often = set(labels[: max(len(labels) // 2, 1)])
    chance = torch.rand(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [row for row, one in zip(rows, chance, strict=True) if row["output"] in often or one * FREQUENT < 1]


def change(task: Task, kind: str, later: Rows, queries: int) -> Change:
    """The change of a kind, of rows that follow."""
    asked = [{"input": text, "output": answer} for text, answer in zip(task.queries, task.answers, strict=True)]
    asked = asked[:queries]
    if kind == "frequencies":
        later, asked = drawn(later, task.labels, 0), drawn(asked, task.labels, 1)
    elif kind == "texts":
        later, asked = ([{**row, "input": shortened(row["input"])} for row in some] for some in (later[:SINCE], asked))
    else:
        moved = task.labels if kind == "meaning" else task.labels[: max(len(task.labels) // 2, 2)]
        meaning = {label: label for label in task.labels} | dict(zip(moved, [*moved[1:], moved[0]], strict=True))
        later, asked = ([{**row, "output": meaning[row["output"]]} for row in some] for some in (later, asked))
    return Change(later[:SINCE], [row["input"] for row in asked], [row["output"] for row in asked])


def parts(rows: Rows) -> Iterator[tuple[int, Rows]]:
    """The rows up to each of `MARKS`."""
    for start, end in zip((0, *MARKS), MARKS, strict=False):
        yield end, rows[start:end]


def accuracy(found: tuple[str, ...], answers: list[str]) -> float:
    return mean(one == other for one, other in zip(found, answers, strict=True))


class OfState:
    """A state of `iterative`."""

    def __init__(self, task: Task, config: dict[str, Any]) -> None:
        self.amortizer: Amortizer = AutoAmortizer.from_pretrained(
            "iterative", backbone=task.backbone, config={"max_tokens": MAX_TOKENS, **config}
        )
        self.empty = self.amortizer.init_state(TaskSpec("classification", task.labels))

    def read(self, state: TaskState | None, rows: Rows) -> TaskState:
        state = state or self.empty
        for chunk in chunks(rows):
            state = self.amortizer.update(state, chunk)
        return state

    def answers(self, state: TaskState, queries: list[str]) -> tuple[str, ...]:
        return self.amortizer.predict(state, queries).outputs


class OfWindow:
    """Logistic regression on the newest examples, fitted anew for each answer."""

    def __init__(self, task: Task) -> None:
        self.task, self.features = task, OfState(task, {}).amortizer.backbone

    def vectors(self, texts: list[str]) -> torch.Tensor:
        return self.features.features(texts, MAX_TOKENS).vectors

    def read(self, state: Any, rows: Rows) -> Rows:
        return [*(state or []), *rows][-WINDOW:]

    def answers(self, state: Rows, queries: list[str]) -> tuple[str, ...]:
        fitted = LogisticRegression(C=PENALTY, max_iter=1000)
        fitted.fit(self.vectors([row["input"] for row in state]).numpy(), [row["output"] for row in state])
        return tuple(fitted.predict(self.vectors(queries).numpy()))


class OfForest(OfWindow):
    """River's adaptive random forest, which has a detector of drift a tree."""

    def read(self, state: Any, rows: Rows) -> Any:
        import copy

        from river import forest

        grown = copy.deepcopy(state) if state else forest.ARFClassifier(n_models=TREES, seed=0)
        for vector, row in zip(self.vectors([row["input"] for row in rows]).tolist(), rows, strict=True):
            grown.learn_one(dict(enumerate(vector)), row["output"])
        return grown

    def answers(self, state: Any, queries: list[str]) -> tuple[str, ...]:
        return tuple(str(state.predict_one(dict(enumerate(vector)))) for vector in self.vectors(queries).tolist())


def changing(task: Task, learner: Any, queries: int, rows: Rows) -> dict[str, dict[str, Any]]:
    """By kind of change: accuracy by examples since, and what a watched state noticed."""
    half = len(rows) // 2
    before, found = learner.read(None, rows[:half]), {}
    for kind in KINDS:
        since = change(task, kind, rows[half:], queries)
        state, accuracies = before, {}
        for mark, part in parts(since.later):
            state = learner.read(state, part)
            accuracies[str(mark)] = accuracy(learner.answers(state, since.queries), since.answers)
        told: list[list[Any]] = []
        if isinstance(state, TaskState) and state.header.config.get("watch"):
            told = [[one.kind, one.noticed - half, one.began - half] for one in learner.amortizer.changes(state)]
        found[kind] = {"accuracy": accuracies, "noticed": told}
    return found


def stationary(learner: OfState, rows: Rows) -> dict[str, Any]:
    """What is noticed on a stream that does not change."""
    state = learner.read(None, rows)
    return {"examples": len(rows), "noticed": [[one.kind, one.noticed] for one in learner.amortizer.changes(state)]}


def detection(result: dict[str, Any]) -> list[list[str]]:
    """By kind of change: in how many streams a kind was noticed within 200 examples, after how many, and too early."""
    table = [["what changed", "noticed as", "streams", "examples until then: median, most", "before the change"]]
    for kind in KINDS:
        runs = [order[kind]["noticed"] for orders in result["accuracy"][WATCHED].values() for order in orders]
        for said in NOTICED:
            first = [[at for what, at, _ in run if what == said and at > 0] for run in runs]
            delays = sorted(times[0] for times in first if times and times[0] <= 200)
            early = sum(what == said and at <= 0 for run in runs for what, at, _ in run)
            if delays or early:
                middle = f"{numpy.median(delays):.0f}, {delays[-1]}" if delays else ""
                table.append([kind, said, f"{len(delays)} of {len(runs)}", middle, str(early)])
    return table


def report(result: dict[str, Any], output: Path) -> None:
    """Write results.md."""
    tables = []
    for kind in KINDS:
        table = [[f"{kind}: accuracy, % by examples since", *map(str, MARKS)]]
        for row, by_task in result["accuracy"].items():
            orders = range(min(len(orders) for orders in by_task.values()))
            cells = [
                lab.shown(
                    [mean(runs[seed][kind]["accuracy"][str(mark)] for runs in by_task.values()) for seed in orders],
                    100,
                    1,
                )
                for mark in MARKS
            ]
            table.append([row, *cells])
        tables.append(markdown(table))
    runs = [run for orders in result["stationary"].values() for run in orders]
    false = [one for run in runs for one in run["noticed"] if one[0] in NOTICED]
    examples = sum(run["examples"] for run in runs)
    title = f"{result['backbone']}; {', '.join(result['tasks'])}; up to {result['examples']:,} examples, of which the"
    title += f" first half come before the change; {result['orders']} orders."
    quiet = (
        f"On {len(runs)} streams of {examples:,} examples in all that do not change, {len(false)} changes were noticed"
    )
    quiet += f" ({', '.join(f'{kind} at {at:,}' for kind, at in false)})." if false else "."
    lab.write_report(output, [title, *tables, markdown(detection(result)), quiet if runs else ""])


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/features"))
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quiet_seeds", type=int, default=4, help="Orders of streams that do not change.")
    parser.add_argument("--output", type=Path, default=Path("scripts/results/changes"))
    args = parser.parse_args()
    backbone = CachedBackbone(load_backbone(args.backbone), args.cache_dir)
    tasks = [Task(args.data_dir / name, backbone) for name in args.tasks]
    head = {"backbone": args.backbone, "examples": args.examples, "queries": args.queries, "orders": args.seeds}
    path = args.output / "results.json"
    result = lab.standing(path, {**head, "tasks": args.tasks}, {"accuracy": {}, "stationary": {}})

    def measured(
        into: dict[str, Any], task: Task, seeds: int, measure: Callable[[Rows], Any], most: int | None
    ) -> None:
        if len(into.get(task.name, ())) < seeds:
            into[task.name] = [measure(task.rows(seed)[:most]) for seed in range(seeds)]
            write_whole(path, json.dumps(result, indent=1).encode())

    rows: dict[str, tuple[Callable[[Task], Any], int, int]] = {
        name: (partial(OfState, config=config), args.seeds, args.queries) for name, config in STATES.items()
    }
    rows[WINDOWS] = (OfWindow, args.seeds, args.queries)
    try:
        import river  # noqa: F401
    except ImportError:
        pass
    else:
        rows[FOREST] = (OfForest, 1, min(FOREST_QUERIES, args.queries))
    for name, (make, seeds, queries) in rows.items():
        for task in tqdm(tasks, desc=name, unit=" tasks"):
            into = result["accuracy"].setdefault(name, {})
            measured(into, task, seeds, partial(changing, task, make(task), queries), args.examples)
    for task in tqdm(tasks, desc="streams that do not change", unit=" tasks"):
        learner = OfState(task, STATES[WATCHED])
        measured(result["stationary"], task, args.quiet_seeds, partial(stationary, learner), 10**6)
    report(result, args.output)
    print(f"results.json and results.md in {args.output}")


if __name__ == "__main__":
    lab.run(main)
