"""The language model's own ways of adapting, beside the iterative head on its frozen features.

    python scripts/comparison/compare_lm.py --data_dir META_TEST --output scripts/results/compare_lm

Rows: zero-shot; in-context learning with 8, 32 and as many demonstrations as 4,096 tokens hold, and with 16 retrieved
for each query; prompt tuning and LoRA given 1 and 10 times the seconds that `iterative` takes to read the same
examples; `iterative` itself, with a depth too. All see the same --examples examples, and answer the same --queries
queries. What is in OUTPUT/results.json already is not measured again.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch

from comparison import lab
from comparison.lab import Answers, Job, Record, shown
from comparison.tasks import MAX_TOKENS, TASKS, Rows, Task, chunk_of, chunks, endless
from iai_hf import AutoAmortizer, Prediction, TaskSpec, load_backbone, score
from iai_hf.backbones.causal_lm import CausalLM
from iai_hf.compare import markdown
from iai_hf.errors import BackboneError

BACKBONE = "HuggingFaceTB/SmolLM2-135M-Instruct"
RETRIEVED = 16
BATCH = 8


def adapted(model: CausalLM, task: Task, rows: Rows, method: str, config: dict[str, Any]) -> Answers:
    """Any method of the contract, in one pass."""
    amortizer = AutoAmortizer.from_pretrained(method, backbone=model, config={"max_tokens": MAX_TOKENS, **config})
    state = amortizer.init_state(TaskSpec("classification", task.labels))
    began = time.perf_counter()
    for chunk in chunks(rows):
        state = amortizer.update(state, chunk)
    return answered(task, time.perf_counter() - began, lambda texts: amortizer.predict(state, texts), state.nbytes)


def answered(task: Task, seconds: float, predict: Callable[[list[str]], Prediction], size: int) -> Answers:
    began = time.perf_counter()
    prediction = predict(task.queries)
    cost = 1000 * (time.perf_counter() - began) / len(task.queries)
    return {**score(prediction, task.answers), "seconds": seconds, "ms_per_query": cost, "state_bytes": size}


def retrieved(model: CausalLM, task: Task, rows: Rows) -> Answers:
    """In-context learning with the nearest examples by the model's own features, nearest last."""
    config = {"max_tokens": MAX_TOKENS, "demonstration_tokens": 4096}
    amortizer = AutoAmortizer.from_pretrained("in-context", backbone=model, config=config)
    began = time.perf_counter()
    keys = model.features([row["input"] for row in rows], MAX_TOKENS).vectors
    spent = time.perf_counter() - began

    def predict(texts: list[str]) -> Prediction:
        found = []
        for text, query in zip(texts, model.features(texts, MAX_TOKENS).vectors, strict=True):
            near = [rows[i] for i in (keys @ query).topk(min(RETRIEVED, len(rows))).indices.tolist()][::-1]
            state = amortizer.update(amortizer.init_state(TaskSpec("classification", task.labels)), chunk_of(near))
            found.append(amortizer.predict(state, [text]).log_probs)
        return Prediction.from_logits(torch.cat([part for part in found if part is not None]), task.labels)

    return answered(task, spent, predict, keys.nbytes)


def trained(model: CausalLM, task: Task, rows: Rows, method: str, seconds: float) -> Answers:
    """A gradient method of the contract, epoch after epoch until its time is up."""
    amortizer = AutoAmortizer.from_pretrained(method, backbone=model, config={"max_tokens": MAX_TOKENS})
    state = amortizer.init_state(TaskSpec("classification", task.labels))
    began = time.perf_counter()
    for chunk in endless(rows, BATCH):
        state = amortizer.update(state, chunk)
        if time.perf_counter() - began > seconds:
            break
    return answered(task, time.perf_counter() - began, lambda texts: amortizer.predict(state, texts), state.nbytes)


def measure(row: str, model: CausalLM, task: Task, rows: Rows, unit: float) -> Answers:
    """One row; `unit` is the seconds that `iterative` took."""
    if row.startswith("in-context, "):
        shots = row.removeprefix("in-context, ")
        count = len(rows) if shots == "4,096 tokens" else int(shots)
        return adapted(model, task, rows[:count], "in-context", {"demonstration_tokens": 4096})
    rows_of: dict[str, Callable[[], Answers]] = {
        "iterative": lambda: adapted(model, task, rows, "iterative", {"adapter": None}),
        "iterative, depth=auto": lambda: adapted(model, task, rows, "iterative", {"adapter": None, "depth": "auto"}),
        "zero-shot": lambda: adapted(model, task, [], "in-context", {}),
        "in-context retrieved": lambda: retrieved(model, task, rows),
        "prompt tuning 1x": lambda: trained(model, task, rows, "prompt-tuning", unit),
        "prompt tuning 10x": lambda: trained(model, task, rows, "prompt-tuning", 10 * unit),
        "LoRA 1x": lambda: trained(model, task, rows, "lora", unit),
        "LoRA 10x": lambda: trained(model, task, rows, "lora", 10 * unit),
    }
    return rows_of[row]()


ROWS = (
    "iterative",
    "iterative, depth=auto",
    "zero-shot",
    "in-context, 8",
    "in-context, 32",
    "in-context, 4,096 tokens",
    "in-context retrieved",
    "LoRA 1x",
    "LoRA 10x",
    "prompt tuning 1x",
    "prompt tuning 10x",
)


METRICS = {
    "accuracy": ("accuracy, %", 100.0),
    "negative_log_likelihood": ("NLL", 1.0),
    "calibration_error": ("ECE, %", 100.0),
    "seconds": ("seconds to adapt", 1.0),
    "ms_per_query": ("ms a query", 1.0),
    "state_bytes": ("state, kB", 0.001),
}


def report(records: list[Record], output: Path) -> None:
    """Write results.md."""
    tasks = sorted({record["task"] for record in records})
    measured = [{record["task"] for record in lab.pick(records, row=row)} for row in ROWS]
    shared = sorted(set(tasks).intersection(*(found for found in measured if found)))
    lines = [["", "orders", *(title for title, _ in METRICS.values())]]
    every = [["accuracy, %, all that was measured", *tasks]]
    for row in ROWS:
        mine = lab.pick(records, row=row)
        by_seed = [[r["answers"] for r in lab.pick(mine, seed=seed) if r["task"] in shared] for seed in seeds(mine)]
        whole = [answers for answers in by_seed if len(answers) == len(shared)]
        if whole:
            means = {metric: [mean(each[metric] for each in answers) for answers in whole] for metric in METRICS}
            lines.append([row, str(len(whole)), *(shown(means[m], scale, 2) for m, (_, scale) in METRICS.items())])
        if mine:
            scores = ([record["answers"]["accuracy"] for record in lab.pick(mine, task=task)] for task in tasks)
            every.append([row, *(f"{100 * mean(found):.1f}" if found else "" for found in scores)])
    title = (
        f"{BACKBONE}, {records[0]['examples']:,} examples, {records[0]['queries']} queries; mean over "
        f"{', '.join(shared)}, ± standard error over orders; below, all that was measured."
    )
    lab.write_report(output, [title, markdown(lines), markdown(every)])


def seeds(records: list[Record]) -> list[int]:
    """In the order in which they were measured."""
    return list(dict.fromkeys(record["seed"] for record in records))


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of tasks with train.jsonl and test.jsonl")
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("scripts/results/compare_lm"))
    args = parser.parse_args()
    model = load_backbone(BACKBONE)
    if not isinstance(model, CausalLM):
        raise BackboneError(f"{BACKBONE} is no causal language model")

    def measured(job: Job, mine: dict[str, Answers]) -> tuple[dict[str, Any], Answers]:
        seed, name, row = job
        task = Task(args.data_dir / name, model)
        stride = max(len(task.queries) // args.queries, 1)
        task.queries, task.answers = (part[::stride][: args.queries] for part in (task.queries, task.answers))
        unit = mine.get("iterative", {}).get("seconds", 0.0)
        answers = measure(row, model, task, task.rows(seed)[: args.examples], unit)
        return {"examples": args.examples, "queries": len(task.queries)}, answers

    lab.measure_all(args.output, itertools.product(range(args.seeds), args.tasks, args.rows), measured, report)


if __name__ == "__main__":
    lab.run(main)
