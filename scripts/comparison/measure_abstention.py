"""Answers with a stated error: do sets of labels hold the right one as often as asked, do strange texts get None?

    python scripts/comparison/measure_abstention.py --data_dir META_TEST --output scripts/results

Of each task, size, order and chunk size: how often a set holds the right label, its size, and how many texts get None,
though their classes are known; of queries from the same source as what was read (the rest of a pool of its training
rows, so that both are exchangeable), and of the task's test rows, which may have been collected otherwise.

Then, with 30% of the classes left out of what is read, and with texts of the next task among the queries, the area
under the curve (AUROC) by which texts that nobody could know are told from others, beside the largest probability and
the Mahalanobis distance (Lee et al. 2018, arXiv 1807.03888; relative: Ren et al. 2021, arXiv 2106.09022) on the same
features. What OUTPUT/abstention.json has already is not measured again. Scores, and the sphere in the rivals'
covariance, were chosen on held-out meta-training tasks.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch
from huggingface_hub.utils import tqdm
from sklearn.metrics import roc_auc_score

from comparison import lab
from comparison.lab import Record, shown
from comparison.tasks import MAX_TOKENS, TASKS, Rows, Task, chunk_of
from iai_hf import AutoAmortizer, TaskSpec, load_backbone
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.compare import markdown
from iai_hf.features.calibrated import ConformalFeatures
from iai_hf.features.heads.calibration import text_scores
from iai_hf.files import write_whole
from iai_hf.metrics import answered, covered
from iai_hf.state import TaskState

METHODS = ("iterative", "iterative-explicit", "iterative-implicit")
SIZES, CHUNKS = (64, 256, 1024), (16, 64)
COVERAGE, ABSTAIN = 0.9, 0.05
LEFT_OUT = 0.3  # of the classes
SPHERE = 1000.0  # examples that a sphere counts for in the rivals' covariance
READ, QUERIES = 1536, 1000  # rows of a task's pool that may be read, and that are asked
KINDS = ("classes left out", "another task")
ROWS = (*METHODS, "largest probability", "Mahalanobis", "relative Mahalanobis")


def learned(amortizer: ConformalFeatures, rows: Rows, labels: tuple[str, ...], chunk_size: int) -> TaskState:
    """The state after rows, in chunks."""
    state = amortizer.init_state(TaskSpec("classification", labels))
    for first in range(0, len(rows), chunk_size):
        state = amortizer.update(state, chunk_of(rows[first : first + chunk_size]))
    return state


def kept(amortizer: ConformalFeatures, task: Task, rows: Rows, queries: dict[str, Rows], chunk_size: int) -> Record:
    """Coverage, the sets' size, and the share that gets None, by where the queries are from."""
    state = learned(amortizer, rows, task.labels, chunk_size)
    found: Record = {}
    for source, asked in queries.items():
        right = [row["output"] for row in asked]
        answers = amortizer.predict(state, [row["input"] for row in asked], coverage=COVERAGE, abstain=ABSTAIN)
        figures = {**covered(answers.sets or (), right), "none": 1 - answered(answers.outputs, right)["answered"]}
        found |= {f"{name}, {source}": value for name, value in figures.items()}
    return found


def told(
    amortizers: Iterable[ConformalFeatures], rows: Rows, labels: tuple[str, ...], own: Rows, others: Rows
) -> Record:
    """AUROC x 100 of telling others from one's own queries, by each of `ROWS`."""
    strange = [False] * len(own) + [True] * len(others)
    texts, scores = [row["input"] for row in own + others], {}
    for amortizer in amortizers:
        state, (queries, _) = learned(amortizer, rows, labels, 64), amortizer.features(texts)
        logits = amortizer.head.logits(amortizer.prepared(state), queries)
        scores[amortizer.method] = text_scores(logits, state.tensors["counts"])
        scores.setdefault("largest probability", -logits.softmax(1).amax(1))  # of iterative, the first
    features, _ = amortizer.features([row["input"] for row in rows])
    targets = torch.tensor([labels.index(row["output"]) for row in rows])
    scores["Mahalanobis"] = mahalanobis(features, targets, queries)
    scores["relative Mahalanobis"] = scores["Mahalanobis"] - mahalanobis(features, torch.zeros_like(targets), queries)
    return {row: 100 * float(roc_auc_score(strange, scores[row].numpy())) for row in ROWS}


def mahalanobis(features: torch.Tensor, targets: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Squared distance to the nearest class mean, by the covariance that classes share."""
    means = torch.stack([features[targets == number].mean(0) for number in targets.unique()])
    offset = features - means[targets.unique(return_inverse=True)[1]]
    scatter, size = offset.T @ offset, features.shape[1]
    sphere = SPHERE * (scatter.diagonal().mean() + 1e-3 / size) / len(features) * torch.eye(size)
    factor = torch.linalg.cholesky((scatter + sphere) / (len(features) + SPHERE))
    whitened = [torch.linalg.solve_triangular(factor, part.T, upper=False).T for part in (queries, means)]
    return torch.cdist(*whitened).square().amin(1)


def tables(records: list[Record]) -> str:
    """The report: means over tasks and orders."""
    figures = ("coverage, same", "labels_a_set, same", "none, same", "coverage, test", "none, test")
    rows = [["method", "examples", "chunks of", "states", "coverage, %", *TASKS, "labels a set", "None, %"]]
    rows[0] += ["coverage, test rows", "None, test rows"]
    for method, size, chunk in product(METHODS, SIZES, CHUNKS):
        mine = lab.pick((record for record in records if "chunk" in record), method=method, size=size, chunk=chunk)
        first, *others = [
            shown([record[name] for record in mine], 1 if "set" in name else 100, 2 if "set" in name else 1)
            for name in figures
        ]
        each = [[record[figures[0]] for record in lab.pick(mine, task=task)] for task in TASKS]
        by_task = [f"{100 * mean(values):.1f}" if values else "" for values in each]
        rows.append([method, f"{size:,}", str(chunk), str(len(mine)), first, *by_task, *others])
    areas = [["AUROC x 100", "examples", "states", *ROWS]]
    for kind, size in product(KINDS, (*SIZES, 0)):
        mine = [record for record in records if record.get("kind") == kind and size in (0, record["size"])]
        areas.append(
            [
                kind,
                f"{size:,}" if size else "all",
                str(len(mine)),
                *(shown([record[row] for record in mine], 1, 1) for row in ROWS),
            ]
        )
    parts = [
        "# Answers with a stated error",
        f"Sets asked to hold the right label in {COVERAGE:.0%} of cases, and None for at most {ABSTAIN:.0%} of texts "
        f"whose classes are known: the share of sets that do, in all and by task, their mean size, and the share that "
        f"got None; of queries from the same source, and of the task's test rows. Means over tasks and orders "
        "± standard errors.",
        markdown(rows),
        f"How well texts that nobody could know are told from others: those of {LEFT_OUT:.0%} of the classes, left out "
        "of what was read (tasks of more than two classes), and those of another task.",
        markdown(areas),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--orders", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/features"))
    parser.add_argument("--output", type=Path, default=Path("scripts/results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    records = lab.Records(args.output / "abstention.json")
    backbone = CachedBackbone(load_backbone("sentence-transformers/all-MiniLM-L6-v2"), args.cache_dir)
    made: list[ConformalFeatures] = []
    for method in METHODS:
        config = {"max_tokens": MAX_TOKENS, **({"calibration_examples": 256} if method == "iterative-explicit" else {})}
        amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone, config=config)
        assert isinstance(amortizer, ConformalFeatures)
        made.append(amortizer)
    tasks = [Task(args.data_dir / name, backbone) for name in TASKS]

    def note(record: Record) -> None:
        records.add({key: round(value, 4) if isinstance(value, float) else value for key, value in record.items()})
        write_whole(args.output / "abstention.md", tables(records.all).encode())

    for order, number in tqdm(list(product(range(args.orders), range(len(tasks)))), unit=" orders"):
        task, other = tasks[number], tasks[(number + 1) % len(tasks)]
        chance = random.Random(order)
        rows = chance.sample(pool := task.rows(0)[: READ + QUERIES], len(pool))
        rows, rest = rows[:READ], rows[READ:]
        queries = chance.sample(task.test, min(QUERIES, len(task.test)))
        left_out = set(chance.sample(task.labels, max(1, round(LEFT_OUT * len(task.labels)))))
        known = tuple(label for label in task.labels if label not in left_out)
        for size in SIZES:
            for amortizer, chunk in product(made, CHUNKS):
                place = {"task": task.name, "order": order, "size": size, "method": amortizer.method, "chunk": chunk}
                if not pick(records, place):
                    note({**place, **kept(amortizer, task, rows[:size], {"same": rest, "test": queries}, chunk)})
            for kind in KINDS if len(known) > 1 else KINDS[1:]:
                place = {"task": task.name, "order": order, "size": size, "kind": kind}
                if pick(records, place):
                    continue
                labels, read, own = task.labels, rows, rest
                strange = random.Random(order).sample(other.test, min(len(own), len(other.test)))
                if kind == KINDS[0]:
                    labels, read = known, [row for row in rows if row["output"] in known]
                    own = [row for row in rest if row["output"] in known]
                    strange = [row for row in rest if row["output"] in left_out]
                note({**place, **told(made, read[:size], labels, own, strange)})


def pick(records: lab.Records, place: Record) -> list[Record]:
    """Records of a place, of whichever table."""
    return [record for record in records.all if all(record.get(key) == value for key, value in place.items())]


if __name__ == "__main__":
    lab.run(main)
