"""Is a stream ever harmful? Far past the horizon of training, update by update, and over orders.

    python scripts/comparison/measure_harm.py --data_dir META_TEST --output scripts/results/harm.json

For each task: accuracy at the longest stream seen in training (or the whole task, where that is shorter) and after 8
times as many examples, read epoch after epoch; the share of updates that lower the log-likelihood of held-out queries
by more than 1%, among those after the first 64 examples and among all; the standard deviation of the last accuracy
over stream orders. Rows of OUTPUT that are not measured now stay in it.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

from huggingface_hub.utils import tqdm

from comparison import lab
from comparison.rows import amortizer_of
from comparison.tasks import MAX_TOKENS, TASKS, Task, chunks
from iai_hf import TaskSpec, load_backbone, score
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.files import write_whole

TIMES = 8
TOLERANCE = 0.01


def one_stream(task: Task, row: str, seed: int, horizon: int) -> dict[str, Any]:
    """One order: accuracies at the horizon, of the whole task and at 8 horizons; likelihoods after each update."""
    amortizer = amortizer_of(row, task.backbone)
    state = amortizer.init_state(TaskSpec("classification", task.labels))
    rows = task.rows(seed)
    horizon = min(horizon, len(rows))
    likelihoods: list[tuple[int, float]] = []
    found: dict[str, Any] = {"horizon": horizon}
    marks = {"at_horizon": horizon, "at_end": len(rows), "at_8_horizons": TIMES * horizon}
    epochs = -(-TIMES * horizon // len(rows))
    for chunk in chunks((rows * epochs)[: TIMES * horizon]):
        before = state.header.examples
        state = amortizer.update(state, chunk)
        seen = state.header.examples
        passed = [name for name, mark in marks.items() if before < mark <= seen]
        if seen <= len(rows) or passed:
            metrics = score(amortizer.predict(state, task.queries), task.answers)
            likelihoods.append((seen, -metrics["negative_log_likelihood"]))
            found |= dict.fromkeys(passed, metrics["accuracy"])
    within = [(seen, value) for seen, value in likelihoods if seen <= len(rows)]
    pairs = list(itertools.pairwise(within))
    harmful = [seen for (_, old), (seen, new) in pairs if new < old - TOLERANCE * abs(old)]
    late = [seen for _, (seen, _) in pairs if seen > 64]
    return {
        **found,
        "harmful_updates": len(harmful) / len(pairs),
        "harmful_late_updates": sum(seen > 64 for seen in harmful) / max(len(late), 1),
    }


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--rows", nargs="+", default=["iterative", "iterative-explicit", "iterative-implicit"])
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/features"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--horizon", type=int, default=4096, help="longest stream in training")
    parser.add_argument("--output", type=Path, default=Path("scripts/results/harm.json"))
    args = parser.parse_args()
    backbone = CachedBackbone(load_backbone(args.backbone), args.cache_dir)
    tasks = [Task(args.data_dir / name, backbone) for name in args.tasks]
    head = {"backbone": args.backbone, "max_tokens": MAX_TOKENS, "orders": args.seeds}
    result = lab.standing(args.output, head, {"rows": {}})
    for row in args.rows:
        streams: dict[str, list[dict[str, Any]]] = {}
        for task in tqdm(tasks, desc=row, unit=" tasks"):
            streams[task.name] = [one_stream(task, row, seed, args.horizon) for seed in range(args.seeds)]
        every = [stream for found in streams.values() for stream in found]
        result["rows"][row] = {
            "accuracy_at_horizon": mean(stream["at_horizon"] for stream in every),
            "accuracy_at_8_horizons": mean(stream["at_8_horizons"] for stream in every),
            "worst_task_change": min(
                mean(stream["at_8_horizons"] - stream["at_horizon"] for stream in found) for found in streams.values()
            ),
            "harmful_updates": mean(stream["harmful_updates"] for stream in every),
            "harmful_late_updates": mean(stream["harmful_late_updates"] for stream in every),
            "deviation_over_orders": mean(
                stdev(stream["at_end"] for stream in found) if len(found) > 1 else 0.0 for found in streams.values()
            ),
            "by_task": streams,
        }
        write_whole(args.output, json.dumps(result, indent=1).encode())
    for row, found in result["rows"].items():
        print(row, {name: round(value, 4) for name, value in found.items() if name != "by_task"})


if __name__ == "__main__":
    lab.run(main)
