"""Every method on every task that was never trained or tuned on: curves at 0, 16, 64, ... examples, several orders.

    python scripts/comparison/compare.py --data_dir META_TEST --output scripts/results/compare

Rows: the iterative amortizers with their shipped weights and untrained, without and with unlabelled text, and the cheap
rivals of `baselines.py` on the same features. What is in OUTPUT/results.json already is not measured again, so a run
that was cut off goes on.
`compare_report.py` turns that file into the Markdown table and the plots.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch
from huggingface_hub.utils import tqdm

from comparison import lab
from comparison.baselines import BASELINES, CALIBRATED, MOST_LABELLED, RIVALS, SEMI_SUPERVISED
from comparison.compare_report import MARKS, report
from comparison.rows import ROWS, UNLABELLED, amortizer_of
from comparison.tasks import TASKS, Task, chunks
from iai_hf import Chunk, Prediction, TaskSpec, load_backbone, score
from iai_hf.amortizer import Amortizer
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.features.frozen_features import verbalize


def iterative_points(task: Task, row: str, seed: int, unlabelled: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Metrics at the marks, of one stream through an amortizer, behind unlabelled texts."""
    amortizer = amortizer_of(row, task.backbone)
    state = amortizer.init_state(TaskSpec("classification", task.labels))
    began = time.perf_counter()
    for first in range(0, len(unlabelled), 64):
        state = amortizer.update(state, Chunk((), (), tuple(unlabelled[first : first + 64])))
    spent = time.perf_counter() - began
    yield point(task, amortizer, state, spent)
    rows = task.rows(seed)
    for chunk in chunks(rows):
        began = time.perf_counter()
        state = amortizer.update(state, chunk)
        spent += time.perf_counter() - began
        if state.header.examples in MARKS or state.header.examples == len(rows):
            yield point(task, amortizer, state, spent)


def point(task: Task, amortizer: Amortizer, state: Any, spent: float) -> dict[str, Any]:
    began = time.perf_counter()
    prediction = amortizer.predict(state, task.queries)
    cost = time.perf_counter() - began
    return {
        "examples": state.header.examples,
        **score(prediction, task.answers),
        "head_seconds": spent,
        "head_ms_per_query": 1000 * cost / len(task.queries),
        "state_bytes": state.nbytes,
    }


def baseline_points(task: Task, row: str, seed: int, already: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Metrics at the marks, of one baseline fitted anew at each; with all examples the order does not matter."""
    rows = task.rows(seed)
    names = task.features([verbalize(label) for label in task.labels])
    queries = task.features(task.queries)
    for count in [0, *(mark for mark in MARKS if 0 < mark < len(rows)), len(rows)]:
        same = [old for old in already if old["examples"] == count == len(rows)]
        if same:
            yield same[0]
            continue
        if (count == 0) != (row == "label names"):
            continue
        x = task.features([rows[i]["input"] for i in range(count)]) if count else torch.zeros(0, names.shape[1])
        y = torch.tensor([task.numbers[rows[i]["output"]] for i in range(count)], dtype=torch.long)
        began = time.perf_counter()
        if row in SEMI_SUPERVISED:
            if count > MOST_LABELLED:
                continue
            answer = SEMI_SUPERVISED[row](x, y, names, task.features(task.unlabelled(seed)))
        else:
            answer = BASELINES[row](x, y, names)
        fitted = time.perf_counter()
        prediction = Prediction.from_logits(answer(queries), task.labels)
        asked = time.perf_counter()
        metrics = score(prediction, task.answers)
        if row not in CALIBRATED:
            metrics = {name: value for name, value in metrics.items() if name in ("accuracy", "macro_f1")}
        yield {
            "examples": count,
            **metrics,
            "head_seconds": fitted - began,
            "head_ms_per_query": 1000 * (asked - fitted) / len(queries),
        }


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of tasks with train.jsonl and test.jsonl")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/features"))
    parser.add_argument("--output", type=Path, default=Path("scripts/results/compare"))
    args = parser.parse_args()
    records = lab.Records(args.output / "results.json")
    backbone = CachedBackbone(load_backbone(args.backbone), args.cache_dir)
    load = functools.cache(lambda name: Task(args.data_dir / name, backbone))
    jobs = itertools.product(args.tasks, args.rows, range(args.seeds))
    for name, row, seed in tqdm(list(jobs), desc="compare", unit=" runs"):
        place = {"backbone": args.backbone, "task": name, "row": row}
        if records.of(**place, seed=seed):
            continue
        task = load(name)
        already = [entry for old in records.of(**place) for entry in old["curve"]]
        if row in RIVALS:
            points = baseline_points(task, row, seed, already)
        else:
            own = UNLABELLED[row][1] if row in UNLABELLED else None
            other = args.tasks[(args.tasks.index(name) + 1) % len(args.tasks)]
            texts = [] if own is None else load(name if own else other).unlabelled(seed)
            points = iterative_points(task, row, seed, texts)
        records.add({**place, "seed": seed, "curve": list(points)})
    report(records.all, args.output)


if __name__ == "__main__":
    lab.run(main)
