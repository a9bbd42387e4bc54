"""Every method on every task that was never trained or tuned on: curves at 0, 16, 64, ... examples, several orders.

    python scripts/comparison/compare.py --data_dir META_TEST --output scripts/results/compare

Rows: the iterative amortizers with their shipped weights and untrained, and the cheap rivals of `baselines.py` on the
same features. What is in OUTPUT/results.json already is not measured again, so a run that was cut off goes on.
`compare_report.py` turns that file into the Markdown table and the plots.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch
from huggingface_hub.utils import tqdm

from comparison.baselines import BASELINES, CALIBRATED
from comparison.compare_report import report
from iai_hf import AutoAmortizer, Chunk, Prediction, TaskSpec, load_backbone, score
from iai_hf.amortizer import Amortizer
from iai_hf.amortizers.frozen_features import spoken
from iai_hf.backbones import Backbone
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.errors import ConfigError, IAIError
from iai_hf.files import check_writable, write_whole
from iai_hf.readers import read_file

TASKS = ("banking77", "sst2", "trec6", "tweet_emotion", "ag_news")
MARKS = (0, 16, 64, 256, 1024)
SIZES = (16, 16, 32)  # of the first chunks, so that the marks are met; 64 from then on
MAX_TOKENS = 128
ITERATIVE: dict[str, tuple[str, dict[str, Any]]] = {
    "iterative": ("iterative", {}),
    "iterative, data": ("iterative", {"signal": "data"}),
    "iterative, gradient": ("iterative", {"signal": "gradient"}),
    "iterative-explicit": ("iterative-explicit", {}),
    "iterative-implicit": ("iterative-implicit", {}),
}
ROWS = (*ITERATIVE, *(f"{name}, untrained" for name in ITERATIVE), *BASELINES)


class Task:
    """A task's texts, and the features that all rows share."""

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        self.name = folder.name
        self.train, self.test = ([row for _, row in read_file(folder / f"{part}.jsonl")] for part in ("train", "test"))
        self.labels = tuple(sorted({row["output"] for row in self.train}))
        self.queries, self.answers = [row["input"] for row in self.test], [row["output"] for row in self.test]
        self.numbers = {label: number for number, label in enumerate(self.labels)}
        self.backbone = backbone

    def rows(self, seed: int) -> list[dict[str, str]]:
        """Training examples in an order that follows from the seed."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        return [self.train[i] for i in order.tolist()]

    def features(self, texts: list[str]) -> torch.Tensor:
        return self.backbone.features(texts, MAX_TOKENS).vectors


def chunks(rows: list[dict[str, str]]) -> Iterator[Chunk]:
    first = 0
    sizes = iter(SIZES)
    while first < len(rows):
        part = rows[first : first + next(sizes, 64)]
        first += len(part)
        yield Chunk(tuple(row["input"] for row in part), tuple(row["output"] for row in part))


def amortizer_of(row: str, backbone: Backbone) -> Amortizer:
    plain = row.removesuffix(", untrained")
    method, settings = ITERATIVE[plain]
    config = {**settings, "max_tokens": MAX_TOKENS}
    if plain != row:
        config["weights"] = None
    amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone, config=config)
    if plain == row and amortizer.config.weights is None:
        raise ConfigError(f"no weights are shipped for {row!r} on {backbone.name}; train them, or leave the row out")
    return amortizer


def iterative_points(task: Task, row: str, seed: int) -> Iterator[dict[str, Any]]:
    """Metrics at the marks, of one stream through an amortizer."""
    amortizer = amortizer_of(row, task.backbone)
    state = amortizer.init_state(TaskSpec("classification", task.labels))
    spent = 0.0
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
    names = task.features([spoken(label) for label in task.labels])
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of tasks with train.jsonl and test.jsonl")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/features"))
    parser.add_argument("--output", type=Path, default=Path("scripts/results/compare"))
    args = parser.parse_args()
    check_writable(args.output)
    path = args.output / "results.json"
    records: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    backbone = CachedBackbone(load_backbone(args.backbone), args.cache_dir)
    jobs = [(name, row, seed) for name in args.tasks for row in args.rows for seed in range(args.seeds)]
    done = {(old["task"], old["row"], old["seed"]) for old in records if old["backbone"] == args.backbone}
    tasks: dict[str, Task] = {}
    for name, row, seed in tqdm(jobs, desc="compare", unit=" runs"):
        if (name, row, seed) in done:
            continue
        if not (args.data_dir / name / "train.jsonl").is_file():
            raise ConfigError(f"no task at {args.data_dir / name}; expected train.jsonl and test.jsonl there")
        task = tasks.setdefault(name, Task(args.data_dir / name, backbone))
        mine = [old for old in records if (old["task"], old["row"], old["backbone"]) == (name, row, args.backbone)]
        already = [entry for old in mine for entry in old["curve"]]
        points = (
            iterative_points(task, row, seed) if row not in BASELINES else baseline_points(task, row, seed, already)
        )
        curve = list(points)
        records.append({"backbone": args.backbone, "task": name, "row": row, "seed": seed, "curve": curve})
        write_whole(path, json.dumps(records, indent=1).encode())
    report(sorted(records, key=lambda record: ROWS.index(record["row"])), args.output)


if __name__ == "__main__":
    try:
        main()
    except IAIError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
