"""What a state can leak: how well its own losses tell examples that it has read from others of the same data.

    python scripts/prepare_data.py
    python scripts/comparison/measure_membership.py --output scripts/results

The simplest membership-inference attack (Yeom et al. 2018): an example is guessed to be a member where the state finds
its answer likely. Reported is the area under the ROC curve, 0.5 for no leak and 1 for a perfect attack, on texts of 20
Newsgroups (20 classes) after 64 and 512 examples. A state that keeps texts or features, as in-context,
iterative-implicit and (its first few examples) lm-state do, leaks them by holding them, whatever this attack says.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the other scripts are

import torch
from huggingface_hub.utils import tqdm
from sklearn.metrics import roc_auc_score

from comparison import lab
from comparison.lab import shown
from iai_hf import AutoAmortizer, load_backbone
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.backbones.cached import CachedBackbone
from iai_hf.compare import markdown
from iai_hf.data import open_stream
from iai_hf.files import write_whole
from prepare_data import prepare

ENCODER, LM = "sentence-transformers/all-MiniLM-L6-v2", "HuggingFaceTB/SmolLM2-135M-Instruct"
METHODS = {
    "iterative": ENCODER,
    "iterative-explicit": ENCODER,
    "iterative-implicit": ENCODER,
    "in-context": LM,
    "lm-state": LM,
    "lora": LM,
}
SIZES = (64, 512)
MAX_TOKENS = 48
Rows = list[dict[str, str]]


def attack(amortizer: Amortizer, members: Rows, others: Rows, size: int) -> float:
    """Area under the ROC curve on as many members as others, at most 128 of each."""
    state = amortizer.adapt(members[:size], progress=False)
    count = min(size, 128)
    asked = [row for row in [*members[:count], *others[:count]] if row["output"] in state.task.labels]
    scores = amortizer.predict(state, [row["input"] for row in asked]).log_probs
    assert scores is not None
    right = torch.tensor([state.task.labels.index(row["output"]) for row in asked])
    likely = scores.gather(1, right[:, None])[:, 0]
    read = {row["input"] for row in members[:count]}
    return float(roc_auc_score([row["input"] in read for row in asked], likely.tolist()))


def table(records: list[dict[str, Any]]) -> list[list[str]]:
    """Head and a row a method."""
    rows = [["area under the ROC curve", "orders", *(f"{size} examples" for size in SIZES)]]
    for method in METHODS:
        cells, orders = [], 0
        for size in SIZES:
            values = [r["area"] for r in records if (r["method"], r["size"]) == (method, size)]
            orders = max(orders, len(values))
            cells.append(shown(values) if len(values) > 1 else "")
        if orders:
            rows.append([method, str(orders), *cells])
    return rows


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=Path("demo/data"))
    parser.add_argument("--cache_dir", type=Path, default=Path("runs/features"))
    parser.add_argument("--output", type=Path, default=Path("scripts/results"))
    args = parser.parse_args()
    prepare(args.data)
    records = lab.Records(args.output / "membership.json")
    rows = [record._asdict() for record in open_stream(args.data / "20newsgroups-train.jsonl").records()]
    loaded: dict[str, Backbone] = {}
    jobs = [(method, seed, size) for method in args.methods for seed in range(args.seeds) for size in SIZES]
    for method, seed, size in tqdm(jobs, unit=" attacks"):
        place = {"method": method, "size": size, "seed": seed}
        if records.of(**place):
            continue
        name = METHODS[method]
        if name not in loaded:
            plain = load_backbone(name)
            loaded[name] = CachedBackbone(plain, args.cache_dir) if name == ENCODER else plain
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        members, others = [rows[i] for i in order[:512]], [rows[i] for i in order[512:1024]]
        settings = {"max_tokens": MAX_TOKENS}
        amortizer = AutoAmortizer.from_pretrained(method, backbone=loaded[name], config=settings)
        records.add({**place, "area": attack(amortizer, members, others, size)})
    write_whole(args.output / "membership.md", markdown(table(records.all)).encode())


if __name__ == "__main__":
    lab.run(main)
