"""Several labels a text: `iterative` beside one-vs-rest, chains and neighbours on the same features, by examples seen.

    python scripts/comparison/measure_multilabel.py --data_dir TASKS --output scripts/results

Data sets: tags of Debian's programs by facet, of which most programs have none or a few (`apt-cache dumpavail`; the
text is the short description), and texts that stand in two tasks, whose labels are then both. All read features of
plain MiniLM-L6, `iterative` in each regime in one pass, in chunks of 64, with no learned weights and no learned
features; the rivals see all examples at once, with the regularisation (or the number of neighbours) that 3-fold
cross-validation chooses. All label names are known ahead. The constants of `iterative` were chosen on `goemotions`,
`airline` and tags of Debian's programs by other facets, `debtags_subject` among them, none of which is measured.
Reported is macro-F1 over the labels that occur in the test part.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import numpy
import torch
from huggingface_hub.utils import tqdm

from comparison import lab
from comparison.label_set_rivals import RIVALS, THRESHOLDS, answers
from comparison.label_sets import JOINED, TAGGED, LabelSets, load
from iai_hf import AutoAmortizer, Prediction, TaskSpec, load_backbone
from iai_hf.backbones import Backbone
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.compare import markdown
from iai_hf.features.frozen_features import FrozenFeatures
from iai_hf.files import write_whole
from iai_hf.metrics import score

TASKS = ("debtags_use", "debtags_works_with", "debtags_interface", "hwu64", "meld")
SIZES = (16, 64, 256, 1024, 4096)
METHODS = ("iterative", "iterative-explicit", "iterative-implicit")
OURS = METHODS[0]
OTHERS = tuple(f"{rival}, {threshold}" for rival in RIVALS for threshold in THRESHOLDS)
METRICS = ("macro_f1", "micro_f1", "ranking_loss", "subset_accuracy", "negative_log_likelihood", "calibration_error")


def made(method: str, backbone: Backbone, settings: dict[str, Any]) -> FrozenFeatures:
    """A method of ours."""
    amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone, config=settings)
    assert isinstance(amortizer, FrozenFeatures)
    return amortizer


def ours(amortizer: FrozenFeatures, data: LabelSets, order: list[int]) -> dict[str, float]:
    """Metrics of the state after these examples."""
    rows = [{"input": data.train[row][0], "output": list(data.train[row][1])} for row in order]
    state = amortizer.adapt(rows, task=TaskSpec("multi-label", data.labels), progress=False)
    return score(amortizer.predict(state, [text for text, _ in data.test]), [labels for _, labels in data.test])


def theirs(amortizer: FrozenFeatures, rival: str, data: LabelSets, order: list[int]) -> dict[str, dict[str, float]]:
    """Metrics by row of `OTHERS`."""
    labels, right = data.labels, [several for _, several in data.test]
    x = amortizer.features([data.train[row][0] for row in order])[0].numpy()
    y = numpy.array([[label in data.train[row][1] for label in labels] for row in order])
    queries = amortizer.features([text for text, _ in data.test])[0].numpy()
    probabilities, thresholds = answers(rival, x, y, queries)
    found = torch.tensor(probabilities, dtype=torch.float64).clamp(1e-6, 1 - 1e-6)
    return {
        f"{rival}, {name}": score(
            Prediction.from_label_logits(found.logit(), torch.tensor(each).clamp(1e-6, 1 - 1e-6).logit(), labels), right
        )
        for name, each in thresholds.items()
    }


def means(records: list[lab.Record], row: str, size: int, metric: str) -> list[float]:
    """Of each order, the mean over data sets; of orders that all sets have."""
    found = lab.pick(records, row=row, size=size)
    tasks = {record["task"] for record in found}
    orders = [lab.pick(found, seed=seed) for seed in sorted({record["seed"] for record in found})]
    return [mean(record[metric] for record in order) for order in orders if len(order) == len(tasks)]


def tables(records: list[lab.Record]) -> list[str]:
    """Macro-F1 by row and size, what `iterative` is ahead of the best other row, by data set too; other metrics."""
    sizes = [size for size in SIZES if means(records, OURS, size, "macro_f1")]
    rows = [["macro-F1, %", "", *(f"{size:,} examples" for size in sizes)]]
    for row in (*METHODS, *OTHERS):
        rows.append([row, "", *(lab.shown(means(records, row, size, "macro_f1"), 100, 1) for size in sizes)])
    best = {size: max(OTHERS, key=lambda row: mean(means(records, row, size, "macro_f1") or [0.0])) for size in sizes}
    for name, tasks in [("ahead of the best of them", TASKS), *((f"- {task}", (task,)) for task in TASKS)]:
        cells = []
        for size in sizes:
            mine = [record for record in records if record["task"] in tasks]
            pair = [means(mine, row, size, "macro_f1") for row in (OURS, best[size])]
            ahead = [one - other for one, other in zip(*pair, strict=False)]
            cells.append(lab.shown(ahead, 100, 1))
        rows.append([name, "", *cells])
    chosen = "The best row is chosen by its mean, at each number of examples: " + "; ".join(
        f"{size:,}: {row}" for size, row in best.items()
    )
    others = [["", "", *(metric.replace("_", " ") for metric in METRICS)]]
    for row in (*METHODS, *(f"{rival}, {THRESHOLDS[1]}" for rival in RIVALS)):
        for size in (size for size in (256, 4096) if size in sizes):
            cells = [lab.shown(means(records, row, size, metric)) for metric in METRICS]
            others.append([row, f"{size:,} examples", *cells])
    return [markdown(rows), chosen + ".", "Other metrics, means over the same sets:", markdown(others)]


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of tasks, for those that are joined")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=(*TAGGED, *JOINED))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--orders", type=int, default=5, help="a rival takes minutes an order with 4,096 examples")
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/features"))
    parser.add_argument("--output", type=Path, default=Path("scripts/results"))
    args = parser.parse_args()
    records = lab.Records(args.output / "multilabel.json")
    backbone = CachedBackbone(load_backbone("sentence-transformers/all-MiniLM-L6-v2"), args.cache_dir)
    settings = {"max_tokens": 128, "adapter": None, "weights": None}
    amortizers = {name: made(name, backbone, settings) for name in METHODS}
    data = {task: load(task, args.data_dir) for task in args.tasks}
    each = [(seed, size, task) for seed in range(args.orders) for size in args.sizes for task in args.tasks]
    for seed, size, task in tqdm(each, unit=" runs"):
        if len(data[task].train) < size:
            continue
        order = numpy.random.default_rng(seed).permutation(len(data[task].train))[:size].tolist()
        place = {"task": task, "size": size, "seed": seed}
        for name in (*METHODS, *RIVALS):
            if records.of(**place, row=name if name in METHODS else f"{name}, {THRESHOLDS[0]}"):
                continue
            found = {name: ours(amortizers[name], data[task], order)} if name in METHODS else {}
            for row, metrics in (found or theirs(amortizers[OURS], name, data[task], order)).items():
                records.add({**place, "row": row, **{metric: round(metrics[metric], 5) for metric in METRICS}})
        report = "\n\n".join(part.strip() for part in tables(records.all))
        write_whole(args.output / "multilabel.md", f"{report}\n".encode())


if __name__ == "__main__":
    lab.run(main)
