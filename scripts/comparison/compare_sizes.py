"""The state inside the language model against the number of examples, beside other ways to adapt the same model.

    python scripts/comparison/compare_sizes.py --data_dir META_TEST --output scripts/results/compare_sizes

Tasks answered in words (exact match) and classification (accuracy), after 4, 8, 16, 64, 256 and all examples (up to
--most). Rows: `lm-state`, with learned weights, also with a single step on each example, and untrained; in-context
learning with all of these examples, up to 4,096 tokens, and with 16 retrieved for each query; LoRA and prompt tuning,
given 1 and 10 times the seconds that `lm-state` takes for the same examples on the same machine; on classification
also `iterative`, with and without a depth. What is in OUTPUT already is not measured again: cells stand in the order
in which a run that is cut off tells most. Several processes may share the work, --share 0/3, 1/3 and 2/3; each writes
a file of its own, and a run without --share puts all together.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch

from comparison import lab
from comparison.lab import Answers, Record, Records, shown
from comparison.tasks import MAX_TOKENS, Rows, Task, chunk_of, endless
from comparison.tasks import TASKS as LABELLED
from iai_hf import AutoAmortizer, Prediction, TaskSpec, load_backbone, score
from iai_hf.amortizer import Amortizer
from iai_hf.backbones.causal_lm import CausalLM
from iai_hf.backbones.conditions import Condition
from iai_hf.backbones.packing import Row
from iai_hf.compare import markdown
from iai_hf.errors import BackboneError
from iai_hf.files import write_whole
from iai_hf.language_model.prompted import Prompted

BACKBONE = "HuggingFaceTB/SmolLM2-135M-Instruct"
WORDS = tuple(f"fv_{name}" for name in (
    "antonym", "country_capital", "present_past", "english_german", "landmark_country", "fruit_v_animal_5",
))  # fmt: skip
SIZES = ("8", "16", "256", "4", "64", "all")  # in the order in which they are measured
IN_ORDER = ("4", "8", "16", "64", "256", "all")
TRAINED, TRAINED_ONCE, UNTRAINED = "lm-state", "lm-state, 1 pass", "lm-state, untrained"
IN_CONTEXT = "in-context"
ROWS = (
    UNTRAINED,
    TRAINED,
    TRAINED_ONCE,
    IN_CONTEXT,
    "iterative",
    "iterative, depth=auto",
    "in-context retrieved",
    "LoRA 1x",
    "prompt tuning 1x",
    "LoRA 10x",
    "prompt tuning 10x",
)
BUDGETED = {  # row -> method, and times the seconds of `lm-state`
    "LoRA 1x": ("lora", 1), "LoRA 10x": ("lora", 10),
    "prompt tuning 1x": ("prompt-tuning", 1), "prompt tuning 10x": ("prompt-tuning", 10),
}  # fmt: skip
CHUNK, BATCH, RETRIEVED = 64, 8, 16
DEMONSTRATION_TOKENS = 4096


class Cell(NamedTuple):
    """What is measured at once."""

    seed: int
    task: str
    row: str
    size: str

    @property
    def key(self) -> Record:
        return self._asdict()


def cells(tasks: Sequence[str], rows: Sequence[str], sizes: Sequence[str], seeds: int) -> list[Cell]:
    """All cells: the first order of all rows, then the next; ten times the seconds last in each."""
    slow = [row for row in rows if row.endswith("10x")]
    quick = [row for row in rows if row not in slow]
    found = []
    for seed in range(seeds):
        for part in (quick, slow):
            for size, row, task in itertools.product([s for s in SIZES if s in sizes], part, tasks):
                if row.startswith("iterative") and task not in LABELLED:
                    continue
                found.append(Cell(seed, task, row, size))
    return found


class Bench:
    """Measures cells on one model.

    Args:
        most: examples that "all" stands for where a task has more, in words and with labels.
        weights: of `lm-state`: a name, a folder, or "auto".
    """

    def __init__(
        self, model: CausalLM, data_dir: Path, queries: int, most: tuple[int, int], weights: str = "auto"
    ) -> None:
        self.model, self.data_dir, self.queries, self.most, self.weights = model, data_dir, queries, most, weights
        self._tasks: dict[str, Task] = {}

    def task(self, name: str) -> Task:
        """With its first --queries queries; where there are labels, evenly spaced ones."""
        if name not in self._tasks:
            task = Task(self.data_dir / name, self.model)
            stride = max(len(task.queries) // self.queries, 1) if name in LABELLED else 1
            task.queries, task.answers = (part[::stride][: self.queries] for part in (task.queries, task.answers))
            self._tasks[name] = task
        return self._tasks[name]

    def measure(self, cell: Cell, known: float | None) -> Record:
        """A cell's record; `known` are the seconds of `lm-state` on the same examples, for rows that are given them."""
        task = self.task(cell.task)
        most = self.most[cell.task in LABELLED]
        rows = task.rows(cell.seed)[: most if cell.size == "all" else int(cell.size)]
        answers = self._answers(cell.row, task, rows, known)
        place = {"examples": len(rows), "queries": len(task.queries), "device": self.model.device.type}
        place |= {"backbone": self.model.name}
        return {**cell.key, **place, "answers": answers}

    def _answers(self, row: str, task: Task, rows: Rows, known: float | None) -> Answers:
        if row == IN_CONTEXT:
            return self._adapted("in-context", task, rows, demonstration_tokens=DEMONSTRATION_TOKENS)
        if row == UNTRAINED:
            return self._adapted("lm-state", task, rows, weights=None)
        if row == TRAINED:
            return self._adapted("lm-state", task, rows, weights=self.weights)
        if row == TRAINED_ONCE:
            return self._adapted("lm-state", task, rows, weights=self.weights, passes=1)
        if row == "iterative":
            return self._adapted("iterative", task, rows, adapter=None)
        if row == "iterative, depth=auto":
            return self._adapted("iterative", task, rows, adapter=None, depth="auto")
        if row == "in-context retrieved":
            return self._retrieved(task, rows)
        method, times = BUDGETED[row]
        if known is None:
            raise BackboneError(f"{row} is given times of {UNTRAINED!r}, which is not measured yet: measure that too")
        amortizer, state = self._started(method, task)
        began = time.perf_counter()
        for chunk in endless(rows, BATCH):
            state = amortizer.update(state, chunk)
            if time.perf_counter() - began > times * known:
                break
        return self._answered(amortizer, state, task, time.perf_counter() - began)

    def _started(self, method: str, task: Task, **settings: Any) -> tuple[Amortizer, Any]:
        labelled = task.name in LABELLED
        limit = {"max_tokens": MAX_TOKENS} if labelled else {}
        amortizer = AutoAmortizer.from_pretrained(method, backbone=self.model, config={**limit, **settings})
        spec = TaskSpec("classification", task.labels) if labelled else TaskSpec("generation")
        return amortizer, amortizer.init_state(spec)

    def _adapted(self, method: str, task: Task, rows: Rows, **settings: Any) -> Answers:
        """Any method of the contract, in one pass."""
        amortizer, state = self._started(method, task, **settings)
        began = time.perf_counter()
        for first in range(0, len(rows), CHUNK):
            state = amortizer.update(state, chunk_of(rows[first : first + CHUNK]))
        return self._answered(amortizer, state, task, time.perf_counter() - began)

    def _answered(self, amortizer: Amortizer, state: Any, task: Task, seconds: float) -> Answers:
        began = time.perf_counter()
        prediction = amortizer.predict(state, task.queries)
        cost = 1000 * (time.perf_counter() - began) / len(task.queries)
        found = {"seconds": seconds, "ms_per_query": cost, "state_bytes": state.nbytes}
        return {**score(prediction, task.answers), **found}

    def _retrieved(self, task: Task, rows: Rows) -> Answers:
        """In-context learning with the nearest examples by the model's own features, nearest last."""
        amortizer, state = self._started("in-context", task)
        assert isinstance(amortizer, Prompted)
        began = time.perf_counter()
        keys = self.model.features([row["input"] for row in rows], MAX_TOKENS).vectors
        spent = time.perf_counter() - began
        began = time.perf_counter()
        near = (self.model.features(task.queries, MAX_TOKENS).vectors @ keys.T).topk(min(RETRIEVED, len(rows)))
        prompter, asked = amortizer.prompter, []
        for text, places in zip(task.queries, near.indices.tolist(), strict=True):
            shown = [prompter.demonstration(rows[i]["input"], rows[i]["output"])[0] for i in reversed(places)]
            row = prompter.row(text, state.task.labels if task.name in LABELLED else ())
            asked.append(Row((*itertools.chain(*shown), *row.query), row.answers))
        if task.name in LABELLED:
            scores = self.model.score(Condition(), asked)
            prediction = Prediction.from_logits(torch.stack(scores).cpu(), state.task.labels)
        else:
            prediction = Prediction(tuple(prompter.generate(Condition(), asked)))
        cost = 1000 * (time.perf_counter() - began) / len(asked)
        found = {"seconds": spent, "ms_per_query": cost, "state_bytes": keys.nbytes}
        return {**score(prediction, task.answers), **found}


def files_of(output: Path) -> list[Path]:
    """Files of records, those of shares after the whole one."""
    return sorted(output.glob("results*.json"))


def gathered(output: Path) -> list[Record]:
    """All records there, each cell once: the first found."""
    found: dict[Cell, Record] = {}
    for path in files_of(output):
        for record in Records(path).all:
            found.setdefault(Cell(*(record[key] for key in Cell._fields)), record)
    return list(found.values())


def known_seconds(records: Sequence[Record], cell: Cell) -> float | None:
    """Of `lm-state` on the same examples, untrained if that was measured."""
    for row in (UNTRAINED, TRAINED):
        for record in lab.pick(records, seed=cell.seed, task=cell.task, row=row, size=cell.size):
            return float(record["answers"]["seconds"])
    return None


def metric(record: Record) -> float:
    """Accuracy where there are labels, else exact match."""
    answers = record["answers"]
    return float(answers["accuracy" if record["task"] in LABELLED else "exact_match"])


def by_seed(records: Sequence[Record], row: str, size: str, tasks: Sequence[str]) -> list[float]:
    """Mean over the tasks, of each order in which all were measured."""
    mine = lab.pick(records, row=row, size=size)
    found = []
    for seed in sorted({record["seed"] for record in mine}):
        values = {record["task"]: metric(record) for record in lab.pick(mine, seed=seed)}
        if set(tasks) <= set(values):
            found.append(mean(values[task] for task in tasks))
    return found


def best_in_context(records: Sequence[Record], size: str, tasks: Sequence[str]) -> list[float]:
    """In-context learning with the number of demonstrations, up to the size, that did best."""
    upto = IN_ORDER[: IN_ORDER.index(size) + 1]
    return max((by_seed(records, IN_CONTEXT, k, tasks) for k in upto), key=lambda v: mean(v) if v else -1.0)


def table(records: Sequence[Record], title: str, tasks: Sequence[str]) -> list[list[str]]:
    """Head and a line a row: mean over tasks, ± standard error over orders, against examples."""
    lines = [[title, *IN_ORDER]]
    for row in dict.fromkeys([TRAINED, TRAINED_ONCE, UNTRAINED, IN_CONTEXT, *ROWS]):
        found = [by_seed(records, row, size, tasks) for size in IN_ORDER]
        if any(found):
            lines.append([row, *(_shown(values) for values in found)])
        if row == IN_CONTEXT and any(found):
            best = [best_in_context(records, size, tasks) for size in IN_ORDER]
            lines.append(["in-context, best number", *(_shown(values) for values in best)])
    return lines


def _shown(values: Sequence[float]) -> str:
    return f"{shown(values, 100, 1)} ({len(values)})" if values else ""


def each_task(records: Sequence[Record], size: str, tasks: Sequence[str]) -> list[list[str]]:
    """Head and a line a row at one size: mean over orders of each task."""
    lines = [[f"{size} examples", *(task.removeprefix("fv_") for task in tasks)]]
    for row in dict.fromkeys([TRAINED, UNTRAINED, *ROWS]):
        mine = [[metric(r) for r in lab.pick(records, row=row, size=size, task=task)] for task in tasks]
        if any(mine):
            lines.append([row, *(f"{100 * mean(values):.1f}" if values else "" for values in mine)])
    return lines


def costs(records: Sequence[Record], tasks: Sequence[str], device: str) -> list[list[str]]:
    """Head and a line a row: seconds to adapt, mean over tasks and orders, on one kind of device."""
    lines = [[f"seconds to adapt, {device}", *IN_ORDER]]
    for row in ROWS:
        mine = [r for r in lab.pick(records, row=row, device=device) if r["task"] in tasks]
        sizes = [[r["answers"]["seconds"] for r in lab.pick(mine, size=size)] for size in IN_ORDER]
        if any(sizes):
            lines.append([row, *(f"{mean(values):.1f}" if values else "" for values in sizes)])
    return lines


def report(records: Sequence[Record], output: Path) -> None:
    """Write results.md."""
    title = (
        f"{records[0]['backbone']}, up to {records[0]['queries']} queries; in %, mean over tasks ± standard "
        "error over orders, whose number stands in brackets. 'all' examples: up to 2,048 of a task in words, up to "
        "1,024 with labels."
    )
    parts = [title]
    found = sorted({record["task"] for record in records}, key=lambda task: (*WORDS, *LABELLED, task).index(task))
    for head, labelled in (("exact match, tasks in words", False), ("accuracy, classification", True)):
        measured = [task for task in found if (task in LABELLED) == labelled]
        if measured:
            parts.append(markdown(table(records, head, measured)))
            parts += [markdown(each_task(records, size, measured)) for size in ("16", "256")]
            devices = sorted({record["device"] for record in records if record["task"] in measured})
            parts += [markdown(costs(records, measured, device)) for device in devices]
    lab.write_report(output, parts)


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=[*WORDS, *LABELLED])
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of tasks with train.jsonl and test.jsonl")
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--sizes", nargs="+", default=SIZES, choices=SIZES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument(
        "--most", type=int, nargs=2, default=(2048, 1024), help="of all examples: in words, with labels"
    )
    parser.add_argument("--weights", default="auto", help="of lm-state")
    parser.add_argument("--share", default="0/1", help="of the work, e.g. 0/3")
    parser.add_argument("--output", type=Path, default=Path("scripts/results/compare_sizes"))
    args = parser.parse_args()
    index, shares = map(int, args.share.split("/"))
    model = load_backbone(args.backbone)
    if not isinstance(model, CausalLM):
        raise BackboneError(f"{args.backbone} is no causal language model")
    bench = Bench(model, args.data_dir, args.queries, tuple(args.most), args.weights)
    records = Records(args.output / ("results.json" if shares == 1 else f"results-{index}.json"))
    if shares == 1 and len(files_of(args.output)) > 1:
        together(args.output)
        records = Records(args.output / "results.json")
    if records.all:
        report(records.all, args.output)
    for cell in mine(cells(args.tasks, args.rows, args.sizes, args.seeds), index, shares):
        every = gathered(args.output)
        if not lab.pick(every, **cell.key):
            records.add(bench.measure(cell, known_seconds(every, cell)))
            if shares == 1:
                report(records.all, args.output)


def mine(every: Sequence[Cell], index: int, shares: int) -> Iterator[Cell]:
    """A share's cells: all of a task and an order are one share's, whose seconds others are given."""
    places = {pair: i for i, pair in enumerate(dict.fromkeys((cell.seed, cell.task) for cell in every))}
    return (cell for cell in every if places[cell.seed, cell.task] % shares == index)


def together(output: Path) -> None:
    """Records of all shares into OUTPUT/results.json; the shares' files are gone then."""
    import json

    records = gathered(output)
    write_whole(output / "results.json", json.dumps(records, indent=1).encode())
    for path in files_of(output):
        if path.name != "results.json":
            path.unlink()


if __name__ == "__main__":
    lab.run(main)
