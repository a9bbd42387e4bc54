"""Whether states inside the language model add up: those of parts of a task, merged, beside that of the whole.

    python scripts/comparison/measure_parts.py --data_dir META_TEST --output scripts/results/parts

Exact match of `lm-state` after the same --examples examples: read by one state; by one that met the chunks in another
order; by 2, 4 and 8 states of parts of equal size, merged. And what a state does to the queries of another task, the
next in the list, beside no state at all. What is in OUTPUT/results.json already is not measured again.
"""

from __future__ import annotations

import itertools
import random
import sys
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

from comparison import lab
from comparison.compare_sizes import BACKBONE, CHUNK, WORDS
from comparison.lab import Answers, Job, Record, shown
from comparison.tasks import Rows, Task, chunk_of
from iai_hf import AutoAmortizer, TaskSpec, TaskState, load_backbone, score
from iai_hf.amortizer import Amortizer
from iai_hf.compare import markdown
from iai_hf.errors import DataError

WHOLE, ORDER, OTHER, NONE = "whole", "chunks in another order", "state of another task", "no state"
PARTS = {f"{count} parts": count for count in (2, 4, 8)}
ROWS = (WHOLE, ORDER, *PARTS, OTHER, NONE)


class Bench:
    """Measures rows with one amortizer."""

    def __init__(self, amortizer: Amortizer, data_dir: Path, examples: int, queries: int) -> None:
        self.amortizer, self.data_dir, self.examples, self.queries = amortizer, data_dir, examples, queries
        self.whole = lru_cache(maxsize=16)(self._whole)
        self.task = lru_cache(maxsize=None)(self._task)

    def measure(self, row: str, seed: int, name: str, before: str) -> Answers:
        """One row on the queries of `name`; `before` is the task whose state is asked for another's answers."""
        task, rows = self.task(name), self._rows(seed, name)
        if row == WHOLE:
            state = self.whole(seed, name)
        elif row == ORDER:
            chunks = [rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK)]
            random.Random(seed).shuffle(chunks)
            state = self._read([text for chunk in chunks for text in chunk])
        elif row == OTHER:
            state = self.whole(seed, before)
        elif row == NONE:
            state = self.amortizer.init_state(TaskSpec("generation"))
        else:
            size = len(rows) / PARTS[row]
            bounds = [round(i * size) for i in range(PARTS[row] + 1)]
            state = self.amortizer.merge([self._read(rows[a:b]) for a, b in itertools.pairwise(bounds)])
        found = self.amortizer.predict(state, task.queries)
        return {**score(found, task.answers), "state_bytes": state.nbytes}

    def _whole(self, seed: int, name: str) -> TaskState:
        return self._read(self._rows(seed, name))

    def _rows(self, seed: int, name: str) -> Rows:
        return self.task(name).rows(seed)[: self.examples]

    def _task(self, name: str) -> Task:
        task = Task(self.data_dir / name, self.amortizer.backbone)
        task.queries, task.answers = task.queries[: self.queries], task.answers[: self.queries]
        return task

    def _read(self, rows: Rows) -> TaskState:
        state = self.amortizer.init_state(TaskSpec("generation"))
        for first in range(0, len(rows), CHUNK):
            state = self.amortizer.update(state, chunk_of(rows[first : first + CHUNK]))
        return state


def report(records: list[Record], output: Path) -> None:
    """Write results.md."""
    tasks = list(dict.fromkeys(record["task"] for record in records))
    lines = [["exact match, %", "orders", "mean", "against the whole", *(task.removeprefix("fv_") for task in tasks)]]
    scores = {
        (record["row"], record["seed"], record["task"]): 100 * record["answers"]["exact_match"] for record in records
    }
    seeds = sorted({record["seed"] for record in records})
    for row in ROWS:
        whole = [seed for seed in seeds if all((row, seed, task) in scores for task in tasks)]
        if not whole:
            continue
        means = [mean(scores[row, seed, task] for task in tasks) for seed in whole]
        known = [seed for seed in whole if all((WHOLE, seed, task) in scores for task in tasks)]
        lost = [mean(scores[row, seed, task] - scores[WHOLE, seed, task] for task in tasks) for seed in known]
        each = [f"{mean(scores[row, seed, task] for seed in whole):.1f}" for task in tasks]
        against = shown(lost, 1, 1) if row not in (WHOLE, OTHER, NONE) else ""
        lines.append([row, str(len(whole)), shown(means, 1, 1), against, *each])
    title = (
        f"`lm-state` on {records[0]['backbone']}, {records[0]['examples']} examples, up to "
        f"{records[0]['queries']} queries; mean over tasks ± standard error over orders."
    )
    lab.write_report(output, [title, markdown(lines)])


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=WORDS)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of tasks with train.jsonl and test.jsonl")
    parser.add_argument("--backbone", default=BACKBONE)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--weights", default="auto", help="of lm-state")
    parser.add_argument("--output", type=Path, default=Path("scripts/results/parts"))
    args = parser.parse_args()
    if len(args.tasks) < 2:
        raise DataError("got one task; expected two or more, as a state is also asked for another task's answers")
    settings = {"weights": None if args.weights == "none" else args.weights}
    backbone = load_backbone(args.backbone)
    amortizer = AutoAmortizer.from_pretrained("lm-state", backbone=backbone, config=settings)
    bench = Bench(amortizer, args.data_dir, args.examples, args.queries)

    def measured(job: Job, mine: dict[str, Answers]) -> tuple[dict[str, Any], Answers]:
        seed, name, row = job
        before = args.tasks[args.tasks.index(name) - 1]
        noted = {"examples": args.examples, "queries": args.queries, "backbone": backbone.name}
        return noted, bench.measure(row, seed, name, before)

    jobs = ((seed, name, row) for seed in range(args.seeds) for name in args.tasks for row in args.rows)
    lab.measure_all(args.output, jobs, measured, report)


if __name__ == "__main__":
    lab.run(main)
