"""Push the shipped amortizers to the Hub, each with its card from model_cards/.

    python scripts/push_to_hub.py --namespace you [--names minilm-l6-iterative ...] [--private]

A folder of your own goes there with `iai push FOLDER REPO_ID`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from huggingface_hub.utils import tqdm

from comparison import lab
from iai_hf import hub, shipped

CARDS = Path(__file__).parents[1] / "model_cards"


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--namespace", required=True, help="user or organisation")
    parser.add_argument("--names", nargs="+", default=shipped.names(), choices=shipped.names())
    parser.add_argument("--private", action="store_true")
    args = parser.parse_args()
    for name in tqdm(args.names, desc="push", unit=" amortizers"):
        with hub.staged(None) as folder:
            shutil.copytree(shipped.FOLDER / name, folder, dirs_exist_ok=True)
            for picture in CARDS.glob(f"{name}.png"):
                shutil.copy(picture, folder)
            card = (CARDS / f"{name}.md").read_text(encoding="utf-8")
            print(hub.push(folder, f"{args.namespace}/{name}", private=args.private or None, card=card))


if __name__ == "__main__":
    lab.run(main)
