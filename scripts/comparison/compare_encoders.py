"""Methods that change the encoder beside the head on frozen features, by examples seen, with all their seconds.

    python scripts/comparison/compare_encoders.py --data_dir META_TEST --output scripts/results/compare_encoders

What is in OUTPUT/results.json already is not measured again. SetFit needs its own package: pip install setfit. On a GPU
(--device cuda) only accuracy is noted: seconds are of one core.
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
ALL = "all"
Mark = int | str  # examples, or all that a task has
MARKS: tuple[Mark, ...] = (16, 64, 256, 1024, ALL)
METRICS = {
    "accuracy": ("Accuracy, %", 100, 1),
    "negative_log_likelihood": ("Negative log-likelihood, nats", 1, 3),
    "calibration_error": ("Expected calibration error, %", 100, 1),
    "seconds": ("Seconds of one core to adapt, all passes of the encoder counted", 1, 1),
    "ms_per_query": ("Milliseconds a query", 1, 2),
    "state_bytes": ("State, kB", 0.001, 0),
}


def mark_of(text: str) -> Mark:
    """A mark as the command line has it."""
    return text if text == ALL else int(text)


def named(mark: Mark) -> str:
    """A mark as tables have it."""
    return mark if isinstance(mark, str) else f"{mark:,}"


def count_of(task: Task, mark: Mark) -> int:
    """Examples of a task that a mark stands for."""
    return len(task.train) if isinstance(mark, str) else mark


def ours(task: Task, row: str, seed: int, marks: list[Mark]) -> list[Record]:
    """A single stream, asked at the marks."""
    counts = {count_of(task, mark): mark for mark in marks}
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
            place = {"examples": counts[state.header.examples], **timed(task, spent, asked)}
            found.append({**place, "state_bytes": state.nbytes, **score(prediction, task.answers)})
    return found


def timed(task: Task, seconds: float, ms_per_query: float) -> Record:
    """Seconds of one core; nothing where a GPU computes."""
    return {"seconds": seconds, "ms_per_query": ms_per_query} if task.backbone.device.type == "cpu" else {}


def rival(task: Task, row: str, seed: int, mark: Mark) -> Record:
    """Trained anew on the examples of the stream up to the mark."""
    torch.manual_seed(seed)
    began = time.process_time()
    answer = RIVALS[row](task, task.rows(seed)[: count_of(task, mark)], seed)
    spent = time.process_time() - began
    began = time.process_time()
    log_probs = answer(task.queries)
    asked = 1000 * (time.process_time() - began) / len(task.queries)
    metrics = score(Prediction.from_logits(log_probs, task.labels), task.answers)
    return {"examples": mark, **timed(task, spent, asked), **metrics}


def report(records: list[Record], output: Path) -> None:
    """Tables of means over the tasks that all orders have, and of each task."""
    tasks = sorted({record["task"] for record in records})
    parts = ["# Methods that change the encoder", "Means over orders ± standard errors."]
    for key, (title, scale, digits) in METRICS.items():
        for place in ("mean", *tasks) if key == "accuracy" else ("mean",):
            lines = [["", *map(named, MARKS)]]
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
    marks = ", ".join(map(named, MARKS))
    parser.add_argument(
        "--examples", nargs="+", type=mark_of, default=MARKS, choices=MARKS, help=f"marks among {marks}"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of the encoder")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--output", type=Path, default=Path("scripts/results/compare_encoders"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = lab.Records(args.output / "results.json")
    backbone = load_backbone(args.backbone, device=args.device)
    load = functools.cache(lambda name: Task(args.data_dir / name, backbone))
    seeds = range(args.first_seed, args.seeds)
    for seed, name, row in tqdm(list(itertools.product(seeds, args.tasks, args.rows)), desc="compare", unit=" runs"):
        place = {"task": name, "row": row, "seed": seed}
        left = [mark for mark in args.examples if not records.of(**place, examples=mark)]
        if not left:
            continue
        task = load(name)
        found = ours(task, row, seed, left) if row in OURS else (rival(task, row, seed, mark) for mark in left)
        for record in found:
            records.add({**place, **record})
        report(records.all, args.output)


if __name__ == "__main__":
    lab.run(main)
