"""A comparison that can be cut off at any moment: what stands in results.json is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from huggingface_hub.utils import tqdm

from iai_hf.files import check_writable, write_whole

Answers = dict[str, Any]
Job = tuple[int, str, str]  # seed, task, row


def run(
    output: Path,
    jobs: Iterable[Job],
    measure: Callable[[Job, dict[str, Answers]], tuple[dict[str, Any], Answers]],
    report: Callable[[list[dict[str, Any]], Path], None],
) -> None:
    """Measure each job; results.json and the report are whole after each.

    Args:
        measure: of a job and the answers of the rows before it on the same task and seed: what to note of the job
            besides its place, and its answers.
    """
    check_writable(output)
    path = output / "results.json"
    records: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    if records:
        report(records, output)  # also where nothing is left to measure: the report itself may have changed
    for job in tqdm(list(jobs), desc="compare", unit=" runs"):
        seed, task, row = job
        mine = {r["row"]: r["answers"] for r in records if (r["seed"], r["task"]) == (seed, task)}
        if row in mine:
            continue
        noted, answers = measure(job, mine)
        records.append({"seed": seed, "task": task, "row": row, **noted, "answers": answers})
        write_whole(path, json.dumps(records, indent=1).encode())
        report(records, output)
