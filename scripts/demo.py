"""The main job on real input, as the commands that a user would type. What is there already is not made again.

1. All 11,293 training posts of 20 Newsgroups through a frozen MiniLM, once, chunk by chunk.
2. A second process loads the state and classifies all test posts.
3. In-context learning and prompt tuning with SmolLM2 on Reuters R8, through the same calls.

Posts are read up to 128 tokens, so that all of it takes at most ten minutes on two cores.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from comparison import lab
from prepare_data import prepare


def iai(made: Path, *arguments: str | Path) -> None:
    """Show a command and run it, unless what it makes is there."""
    words = [str(argument) for argument in arguments]
    print("\n$ iai " + " ".join(words), flush=True)
    if made.exists():
        print(f"({made} is there already)")
        return
    status = subprocess.run([sys.executable, "-m", "iai_hf.cli", *words]).returncode
    if status:
        raise SystemExit(status)


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    output: Path = parser.parse_args().output
    data = output / "data"
    prepare(data)
    news, reuters = output / "20newsgroups", output / "reuters-r8"
    iai(
        news / "results.json",
        *("compare", "--methods", "iterative", "--max-tokens", "128", "--max-test-examples", "250"),
        *("--data", data / "20newsgroups-train.jsonl", "--test", data / "20newsgroups-test.jsonl", "--output", news),
    )
    iai(
        news / "metrics.json",
        *("evaluate", news / "iterative", "--data", data / "20newsgroups-test.jsonl"),
        *("--output", news / "metrics.json"),
    )
    iai(
        reuters / "results.json",
        *("compare", "--methods", "iterative,in-context,prompt-tuning", "--max-tokens", "128"),
        *("--max-examples", "iterative=512,in-context=64,prompt-tuning=96", "--chunk-size", "16"),
        *("--max-test-examples", "100", "--evaluations", "3", "--title", "Reuters R8, posts read up to 128 tokens"),
        *("--data", data / "reuters-r8-train.jsonl", "--test", data / "reuters-r8-test.jsonl", "--output", reuters),
    )
    for folder in (news, reuters):
        print(f"\n{folder.name} (picture: {folder / 'curve.png'})\n")
        print((folder / "results.md").read_text())
    print("20newsgroups, all test posts, the state loaded in a second process:")
    print((news / "metrics.json").read_text())


if __name__ == "__main__":
    lab.run(main)
