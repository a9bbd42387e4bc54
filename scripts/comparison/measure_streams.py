"""What streams that change, and streams in parts, come to.

    python scripts/comparison/measure_streams.py --data_dir META_TEST --output scripts/results/streams

Changing: half-way through a task's examples every label comes to mean another class; accuracy under the new meaning by
the examples read since, for several half-lives. In parts: states of disjoint parts, merged, beside the state of the
whole. Means over tasks ± standard error over orders, in OUTPUT/results.json and OUTPUT/results.md. What
is in OUTPUT/results.json already is not measured again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

from huggingface_hub.utils import tqdm

from comparison import lab
from comparison.lab import shown
from comparison.tasks import MAX_TOKENS, TASKS, Rows, Task, chunks
from iai_hf import AutoAmortizer, TaskSpec, TaskState, load_backbone, score
from iai_hf.amortizer import Amortizer
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.compare import markdown
from iai_hf.files import write_whole

METHODS = ("iterative", "iterative-explicit", "iterative-implicit")
HALF_LIVES = (None, 1024, 256)
MARKS = (0, 64, 256, 1024)  # examples since the labels changed
PARTS = (1, 2, 4, 8)


def read(amortizer: Amortizer, state: TaskState, rows: Rows) -> TaskState:
    for chunk in chunks(rows):
        state = amortizer.update(state, chunk)
    return state


def changing(task: Task, method: str, half_life: int | None, rows: Rows) -> dict[str, float]:
    """Accuracies: before the change, on what labels mean then; since, on what they mean now."""
    config = {"half_life": half_life, "max_tokens": MAX_TOKENS}
    amortizer = AutoAmortizer.from_pretrained(method, backbone=task.backbone, config=config)
    meaning = dict(zip(task.labels, [*task.labels[1:], task.labels[0]], strict=True))
    half = len(rows) // 2
    later = [{**row, "output": meaning[row["output"]]} for row in rows[half:]]
    state = read(amortizer, amortizer.init_state(TaskSpec("classification", task.labels)), rows[:half])
    found = {"before": score(amortizer.predict(state, task.queries), task.answers)["accuracy"]}
    answers = [meaning[answer] for answer in task.answers]
    for start, end in zip((0, *MARKS), MARKS, strict=False):
        if end <= len(later):
            state = read(amortizer, state, later[start:end])
            found[str(end)] = score(amortizer.predict(state, task.queries), answers)["accuracy"]
    return found


def in_parts(task: Task, method: str, rows: Rows) -> dict[str, dict[str, float]]:
    """Accuracy and negative log-likelihood by the number of parts."""
    amortizer = AutoAmortizer.from_pretrained(method, backbone=task.backbone, config={"max_tokens": MAX_TOKENS})
    empty = amortizer.init_state(TaskSpec("classification", task.labels))
    found = {}
    for parts in PARTS:
        states = [read(amortizer, empty, rows[part::parts]) for part in range(parts)]
        state = amortizer.merge(states) if parts > 1 else states[0]
        metrics = score(amortizer.predict(state, task.queries), task.answers)
        found[str(parts)] = {name: metrics[name] for name in ("accuracy", "negative_log_likelihood")}
    return found


def over_tasks(orders: list[list[float]], scale: float, digits: int) -> str:
    """Mean over tasks ± standard error over orders."""
    return shown([mean(values) for values in orders], scale, digits)


def report(result: dict[str, Any], output: Path) -> None:
    """Write results.md."""
    seeds, tasks = range(result["orders"]), result["tasks"]
    marks = ["before", *map(str, MARKS)]
    change = [["accuracy, % by examples since the change", *marks]]
    for name, by_task in result["changing"].items():
        known = [mark for mark in marks if all(mark in by_task[task][seed] for task in tasks for seed in seeds)]
        cells = [
            over_tasks([[by_task[task][seed][mark] for task in tasks] for seed in seeds], 100, 1) for mark in known
        ]
        change.append([name, *cells, *[""] * (len(marks) - len(known))])
    parts = [["accuracy, % / negative log-likelihood by parts", *map(str, PARTS)]]
    for method, by_task in result["in_parts"].items():
        cells = []
        for part in map(str, PARTS):
            columns = (("accuracy", 100, 1), ("negative_log_likelihood", 1, 3))
            cells.append(
                " / ".join(
                    over_tasks([[by_task[task][seed][part][key] for task in tasks] for seed in seeds], scale, digits)
                    for key, scale, digits in columns
                )
            )
        parts.append([method, *cells])
    title = f"{result['backbone']}; {', '.join(tasks)}; up to {result['examples']:,} examples; {len(seeds)} orders."
    lab.write_report(output, [title, markdown(change), markdown(parts)])


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/features"))
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("scripts/results/streams"))
    args = parser.parse_args()
    backbone = CachedBackbone(load_backbone(args.backbone), args.cache_dir)
    tasks = [Task(args.data_dir / name, backbone) for name in args.tasks]
    head = {"backbone": args.backbone, "examples": args.examples, "orders": args.seeds, "tasks": args.tasks}
    path = args.output / "results.json"
    result = lab.standing(path, head, {"changing": {}, "in_parts": {}})
    for method in METHODS:
        for task in tqdm(tasks, desc=method, unit=" tasks"):
            orders = [task.rows(seed)[: args.examples] for seed in range(args.seeds)]
            for half_life in HALF_LIVES:
                name = f"{method}, half-life {half_life}" if half_life else method
                if task.name not in result["changing"].setdefault(name, {}):
                    found = [changing(task, method, half_life, rows) for rows in orders]
                    result["changing"][name][task.name] = found
            if task.name not in result["in_parts"].setdefault(method, {}):
                result["in_parts"][method][task.name] = [in_parts(task, method, rows) for rows in orders]
            write_whole(path, json.dumps(result, indent=1).encode())
    report(result, args.output)
    print(f"results.json and results.md in {args.output}")


if __name__ == "__main__":
    lab.run(main)
