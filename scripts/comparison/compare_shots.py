"""The public protocol of few-shot classification: so many examples of each label, several draws.

    python scripts/comparison/compare_shots.py --data_dir META_TEST --output scripts/results/compare_shots

What is in OUTPUT/results.json already is not measured again. Unlabelled texts are the other training examples.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch
from huggingface_hub.utils import tqdm

from comparison import lab
from comparison.baselines import BASELINES
from comparison.lab import Record, shown
from comparison.tasks import MAX_TOKENS, UNLABELLED, Rows, Task, chunks
from iai_hf import AutoAmortizer, Chunk, Prediction, TaskSpec, load_backbone, score
from iai_hf.compare import markdown

OURS: dict[str, dict[str, Any]] = {
    "iterative, frozen features": {"adapter": None},
    "iterative": {},
    "iterative, 2,000 unlabelled": {},
    "iterative, depth=auto": {"depth": "auto"},
}
RIVAL = "logistic regression"
METRICS = {"accuracy": 100, "negative_log_likelihood": 1, "calibration_error": 100, "seconds": 1}


def draw(task: Task, shots: int, seed: int) -> tuple[Rows, Rows]:
    """`shots` examples of each label, mixed, and the others."""
    chance = random.Random(seed)
    order = chance.sample(task.train, len(task.train))
    counts = dict.fromkeys(task.labels, 0)
    kept: Rows = []
    others: Rows = []
    for row in order:
        wanted = counts[row["output"]] < shots
        counts[row["output"]] += wanted
        (kept if wanted else others).append(row)
    return kept, others


def measured(task: Task, row: str, rows: Rows, others: Rows) -> Record:
    """Accuracy, likelihood, calibration and seconds of one draw."""
    began = time.process_time()
    if row in OURS:
        config = {**OURS[row], "max_tokens": MAX_TOKENS}
        amortizer = AutoAmortizer.from_pretrained("iterative", backbone=task.backbone, config=config)
        state = amortizer.init_state(TaskSpec("classification", task.labels))
        if row.endswith("unlabelled"):
            state = amortizer.update(state, Chunk((), (), tuple(other["input"] for other in others[:UNLABELLED])))
        for chunk in chunks(rows):
            state = amortizer.update(state, chunk)
        prediction = amortizer.predict(state, task.queries)
    else:
        targets = torch.tensor([task.numbers[example["output"]] for example in rows])
        answer = BASELINES[row](
            task.features([example["input"] for example in rows]), targets, task.features(task.labels)
        )
        prediction = Prediction.from_logits(answer(task.features(task.queries)), task.labels)
    return {"seconds": time.process_time() - began, **score(prediction, task.answers)}


def report(records: list[Record], output: Path) -> None:
    """A table: means over draws."""
    lines = [["task, examples a label", "", "draws", "accuracy, %", "NLL, nats", "ECE, %", "seconds of one core"]]
    for task, shots in sorted({(record["task"], record["shots"]) for record in records}):
        for row in (RIVAL, *OURS):
            mine = lab.pick(records, task=task, shots=shots, row=row)
            if mine:
                cells = [shown([record[key] for record in mine], scale) for key, scale in METRICS.items()]
                lines.append([f"{task}, {shots}", row, str(len(mine)), *cells])
    lab.write_report(
        output, ["# So many examples of each label", "Means over draws ± standard errors.", markdown(lines)]
    )


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=["banking77"])
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of tasks with train.jsonl and test.jsonl")
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--rows", nargs="+", default=(RIVAL, *OURS), choices=(RIVAL, *OURS))
    parser.add_argument("--shots", nargs="+", type=int, default=[8], help="examples of each label")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--output", type=Path, default=Path("scripts/results/compare_shots"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = lab.Records(args.output / "results.json")
    backbone = load_backbone(args.backbone)
    jobs = [(n, s, d, r) for n in args.tasks for s in args.shots for d in range(args.draws) for r in args.rows]
    tasks = {name: Task(args.data_dir / name, backbone) for name in args.tasks}
    for name, shots, seed, row in tqdm(jobs, desc="compare", unit=" runs"):
        place = {"task": name, "row": row, "shots": shots, "seed": seed}
        if not records.of(**place):
            records.add({**place, **measured(tasks[name], row, *draw(tasks[name], shots, seed))})
            report(records.all, args.output)


if __name__ == "__main__":
    lab.run(main)
