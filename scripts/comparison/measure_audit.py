"""Audits: how well labels that were changed are found, beside cleanlab on the same features.

    pip install cleanlab
    python scripts/comparison/measure_audit.py --data_dir META_TEST --output scripts/results

5% of the labels are changed: at random, or to the label whose mean text is nearest. Reported is the average precision
of finding them among all, in %. cleanlab (Northcutt et al. 2021) ranks by its default score and by its margin; its
probabilities are those of logistic regression, cross-validated in 5 parts, with the C that predicts the given labels
best. Nothing was chosen on these tasks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch
from huggingface_hub.utils import tqdm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss
from sklearn.model_selection import StratifiedKFold

from comparison import lab
from iai_hf import AutoAmortizer, TaskSpec, load_backbone
from iai_hf.amortizer import Amortizer
from iai_hf.audit import audit
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.compare import markdown
from iai_hf.data import open_stream
from iai_hf.errors import DataError
from iai_hf.features.frozen_features import FrozenFeatures
from iai_hf.files import write_whole

TASKS = ("ag_news", "banking77", "sst2", "trec6", "tweet_emotion")
KINDS = ("random", "confusion")
SIZES = (256, 1024)
CHANGED = 0.05
CS = (0.3, 1.0, 3.0, 10.0)
ROWS = ("audit", "cleanlab, self-confidence", "cleanlab, normalized margin")


def changed(targets: torch.Tensor, features: torch.Tensor, kind: str, seed: int) -> torch.Tensor:
    """Targets int64 `[n]` of which 5% are others."""
    generator = torch.Generator().manual_seed(seed)
    classes = int(targets.max()) + 1
    means = torch.stack([features[targets == c].mean(0) for c in range(classes)])
    means = torch.nn.functional.normalize(means - means.mean(0), dim=1)
    nearest = (means @ means.T).fill_diagonal_(-2).argmax(1)
    found = targets.clone()
    for row in torch.randperm(len(targets), generator=generator)[: round(CHANGED * len(targets))].tolist():
        other = (int(targets[row]) + int(torch.randint(1, classes, (), generator=generator))) % classes
        found[row] = nearest[targets[row]] if kind == "confusion" else other
    return found


def cross_validated(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Probabilities `[n, C]` of each part by a regression on the others."""
    x, y, best = features.numpy(), targets.numpy(), (float("inf"), torch.empty(0))
    for c in CS:
        found = torch.full((len(x), int(targets.max()) + 1), 1e-6, dtype=torch.float64)
        for fit, rest in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
            model = LogisticRegression(C=c, max_iter=300).fit(x[fit], y[fit])
            found[torch.tensor(rest)[:, None], torch.tensor(model.classes_)] = torch.tensor(
                model.predict_proba(x[rest]), dtype=torch.float64
            )
        found = found / found.sum(1, keepdim=True)
        loss = log_loss(y, found.numpy(), labels=range(found.shape[1]))
        best = min(best, (loss, found), key=lambda pair: pair[0])
    return best[1]


def precisions(amortizer: Amortizer, texts: Sequence[str], outputs: Sequence[str], kind: str) -> dict[str, float]:
    """Average precision of each of `ROWS`."""
    from cleanlab.rank import get_label_quality_scores

    assert isinstance(amortizer, FrozenFeatures)
    labels = tuple(dict.fromkeys(outputs))
    targets = torch.tensor([labels.index(output) for output in outputs])
    features, _ = amortizer.features(texts)
    given = changed(targets, features, kind, seed=0)
    bad = (given != targets).numpy()
    answers = [labels[target] for target in given.tolist()]
    rows = [{"input": text, "output": answer} for text, answer in zip(texts, answers, strict=True)]
    state = amortizer.adapt(rows, amortizer.init_state(TaskSpec("classification", labels)), progress=False)
    wrong = {finding.row: finding.wrong for finding in audit(amortizer, state, texts, answers).findings}
    scores = {"audit": [wrong[row] for row in range(len(texts))]}
    probabilities = cross_validated(features, given).numpy()
    for name in ("self_confidence", "normalized_margin"):
        quality = get_label_quality_scores(given.numpy(), probabilities, method=name)
        row = f"cleanlab, {name.replace('self_', 'self-').replace('_', ' ')}"
        scores[row] = [-float(value) for value in quality]
    return {row: 100 * float(average_precision_score(bad, found)) for row, found in scores.items()}


def table(records: list[lab.Record]) -> list[list[str]]:
    """Head and a row a way of ranking; means over tasks."""
    places = [(kind, size) for size in SIZES for kind in KINDS if lab.pick(records, kind=kind, size=size)]
    rows = [["average precision, %", "tasks", *(f"{size:,} examples, {kind}" for kind, size in places)]]
    for row in ROWS:
        found = [[record[row] for record in lab.pick(records, kind=kind, size=size)] for kind, size in places]
        rows.append([row, str(min(map(len, found))), *(f"{mean(values):.1f}" for values in found)])
    return rows


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), choices=SIZES)
    parser.add_argument("--max_tokens", type=int, default=128)
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/features"))
    parser.add_argument("--output", type=Path, default=Path("scripts/results"))
    args = parser.parse_args()
    try:
        import cleanlab  # noqa: F401
    except ImportError as error:
        raise DataError(f"the package cleanlab is not installed ({error}): pip install cleanlab") from error
    records = lab.Records(args.output / "audit.json")
    backbone = CachedBackbone(load_backbone("sentence-transformers/all-MiniLM-L6-v2"), args.cache_dir)
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=backbone, config={"max_tokens": args.max_tokens})
    jobs = [(size, task, kind) for size in sorted(args.sizes, reverse=True) for task in args.tasks for kind in KINDS]
    for size, task, kind in tqdm(jobs, unit=" audits"):
        place = {"task": task, "size": size, "kind": kind}
        rows = list(open_stream(args.data_dir / task / "train.jsonl").records())
        rows = rows[:size]
        if records.of(**place) or len(rows) < size:
            continue
        found = precisions(amortizer, [row.input for row in rows], [row.output or "" for row in rows], kind)
        records.add({**place, **{row: round(value, 2) for row, value in found.items()}})
    write_whole(args.output / "audit.md", markdown(table(records.all)).encode())


if __name__ == "__main__":
    lab.run(main)
