"""Methods that change the encoder beside the head on frozen features, by examples seen, with all their seconds.

    python scripts/comparison/compare_encoders.py --data_dir META_TEST --output scripts/results/compare_encoders

What is in OUTPUT/results.json already is not measured again. SetFit needs its own package: pip install setfit.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch
from huggingface_hub.utils import tqdm

from comparison import lab
from comparison.encoder_rivals import RIVALS
from comparison.lab import Record, shown
from comparison.tasks import MAX_TOKENS, TASKS, Task, chunks
from iai_hf import AutoAmortizer, Prediction, TaskSpec, load_backbone, score
from iai_hf.compare import markdown

OURS: dict[str, dict[str, Any]] = {
    "iterative, frozen features": {"adapter": None},
    "iterative": {},
    "iterative, depth=auto": {"depth": "auto"},
}
MARKS = (16, 64, 256, 1024)
METRICS = {
    "accuracy": ("Accuracy, %", 100, 1),
    "negative_log_likelihood": ("Negative log-likelihood, nats", 1, 3),
    "calibration_error": ("Expected calibration error, %", 100, 1),
    "seconds": ("Seconds of one core to adapt, all passes of the encoder counted", 1, 1),
    "ms_per_query": ("Milliseconds a query", 1, 2),
    "state_bytes": ("State, kB", 0.001, 0),
}


def ours(task: Task, row: str, seed: int, counts: list[int]) -> list[Record]:
    """A single stream, asked at the marks."""
    config = {**OURS[row], "max_tokens": MAX_TOKENS}
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=task.backbone, config=config)
    state = amortizer.init_state(TaskSpec("classification", task.labels))
    spent, found = 0.0, []
    for chunk in chunks(task.rows(seed)[: max(counts)]):
        began = time.process_time()
        state = amortizer.update(state, chunk)
        spent += time.process_time() - began
        if state.header.examples in counts:
            began = time.process_time()
            prediction = amortizer.predict(state, task.queries)
            asked = 1000 * (time.process_time() - began) / len(task.queries)
            place = {"examples": state.header.examples, "seconds": spent, "ms_per_query": asked}
            found.append({**place, "state_bytes": state.nbytes, **score(prediction, task.answers)})
    return found


def rival(task: Task, row: str, seed: int, count: int) -> Record:
    """Trained anew on the first `count` examples of the stream."""
    torch.manual_seed(seed)
    began = time.process_time()
    answer = RIVALS[row](task, task.rows(seed)[:count], seed)
    spent = time.process_time() - began
    began = time.process_time()
    log_probs = answer(task.queries)
    asked = 1000 * (time.process_time() - began) / len(task.queries)
    metrics = score(Prediction.from_logits(log_probs, task.labels), task.answers)
    return {"examples": count, "seconds": spent, "ms_per_query": asked, **metrics}


def report(records: list[Record], output: Path) -> None:
    """Tables of means over the tasks that all orders have, and of each task."""
    tasks = sorted({record["task"] for record in records})
    parts = ["# Methods that change the encoder", "Means over orders ± standard errors."]
    for key, (title, scale, digits) in METRICS.items():
        for place in ("mean", *tasks) if key == "accuracy" else ("mean",):
            lines = [["", *(f"{mark:,}" for mark in MARKS)]]
            for row in (*OURS, *RIVALS):
                cells = []
                for mark in MARKS:
                    mine = [r for r in lab.pick(records, row=row, examples=mark) if r.get(key) is not None]
                    seeds = sorted({record["seed"] for record in mine})
                    values = []
                    for seed in seeds:
                        known = {record["task"]: record[key] for record in lab.pick(mine, seed=seed)}
                        if place in known:
                            values.append(known[place])
                        elif place == "mean" and len(known) == len(tasks):
                            values.append(mean(known.values()))
                    cells.append(shown(values, scale, digits) + (f" ({len(values)})" if values else ""))
                if any(cells):
                    lines.append([row, *cells])
            if len(lines) > 1:
                where = f"mean of {', '.join(tasks)}" if place == "mean" else place
                parts += [f"## {title}: {where} (orders in brackets)", markdown(lines)]
    lab.write_report(output, parts)


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of tasks with train.jsonl and test.jsonl")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--rows", nargs="+", default=(*OURS, *RIVALS), choices=(*OURS, *RIVALS))
    parser.add_argument("--examples", nargs="+", type=int, default=MARKS, help="marks among 16, 64, 256, 1024")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--output", type=Path, default=Path("scripts/results/compare_encoders"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = lab.Records(args.output / "results.json")
    backbone = load_backbone(args.backbone)
    load = functools.cache(lambda name: Task(args.data_dir / name, backbone))
    seeds = range(args.first_seed, args.seeds)
    for seed, name, row in tqdm(list(itertools.product(seeds, args.tasks, args.rows)), desc="compare", unit=" runs"):
        place = {"task": name, "row": row, "seed": seed}
        left = [count for count in args.examples if not records.of(**place, examples=count)]
        if not left:
            continue
        task = load(name)
        found = ours(task, row, seed, left) if row in OURS else (rival(task, row, seed, count) for count in left)
        for record in found:
            records.add({**place, **record})
        report(records.all, args.output)


if __name__ == "__main__":
    lab.run(main)
