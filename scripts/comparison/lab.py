"""What experiments share: going on where one was cut off, tables, and a mistake told in one line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from huggingface_hub.utils import tqdm

from iai_hf.errors import DataError, IAIError
from iai_hf.files import check_writable, write_whole

Record = dict[str, Any]
Answers = dict[str, Any]
Job = tuple[int, str, str]  # seed, task, row


def parser(text: str | None) -> argparse.ArgumentParser:
    """Of a script's options; `text` is its docstring, shown as it is laid out."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


def run(main: Callable[[], None]) -> None:
    """Run a script; what its user can mend is one line on standard error and status 2."""
    try:
        main()
    except IAIError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        raise SystemExit(2) from None


def pick(records: Iterable[Record], **wanted: Any) -> list[Record]:
    """Records with these values."""
    return [record for record in records if all(record[key] == value for key, value in wanted.items())]


class Records:
    """Records in a JSON file, which is whole after each; so what stands there need not be measured again.

    Raises:
        StateError: the file's folder can't be written.
    """

    def __init__(self, path: Path) -> None:
        check_writable(path.parent)
        self.path = path
        self.all: list[Record] = json.loads(path.read_text()) if path.is_file() else []

    def of(self, **wanted: Any) -> list[Record]:
        """Those with these values."""
        return pick(self.all, **wanted)

    def add(self, record: Record) -> None:
        """Append one and write the file."""
        self.all.append(record)
        write_whole(self.path, json.dumps(self.all, indent=1).encode())


def measure_all(
    output: Path,
    jobs: Iterable[Job],
    measure: Callable[[Job, dict[str, Answers]], tuple[Record, Answers]],
    report: Callable[[list[Record], Path], None],
) -> None:
    """Measure each job that OUTPUT/results.json lacks; the file and the report are whole after each.

    Args:
        measure: of a job and the answers of the rows before it on the same task and seed: what to note of the job
            besides its place, and its answers.
    """
    records = Records(output / "results.json")
    if records.all:
        report(records.all, output)  # also where nothing is left to measure: the report itself may have changed
    for job in tqdm(list(jobs), desc="compare", unit=" runs"):
        seed, task, row = job
        mine = {record["row"]: record["answers"] for record in records.of(seed=seed, task=task)}
        if row in mine:
            continue
        noted, answers = measure(job, mine)
        records.add({"seed": seed, "task": task, "row": row, **noted, "answers": answers})
        report(records.all, output)


def standing(path: Path, head: Record, parts: Record) -> Record:
    """What stands in a JSON file of an experiment with the settings `head`; where there is none, `parts` to fill.

    Raises:
        StateError: the file's folder can't be written.
        DataError: the file is of other settings.
    """
    check_writable(path.parent)
    if not path.is_file():
        return {**head, **parts}
    found: Record = json.loads(path.read_text())
    other = [f"{key} {found.get(key)!r}, not {value!r}" for key, value in head.items() if found.get(key) != value]
    if other:
        raise DataError(f"{path} is of {'; '.join(other)}; choose another place")
    return found


def error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def shown(values: Sequence[float], scale: float = 1.0, digits: int = 3) -> str:
    """Mean ± standard error, of one value itself, of none nothing."""
    if not values:
        return ""
    spread = f" ± {scale * error(values):,.{digits}f}" if len(values) > 1 else ""
    return f"{scale * mean(values):,.{digits}f}{spread}"


def write_report(output: Path, parts: Iterable[str]) -> None:
    """Paragraphs, headings and tables as OUTPUT/results.md."""
    write_whole(output / "results.md", "\n\n".join(part.strip() for part in parts if part).encode() + b"\n")
