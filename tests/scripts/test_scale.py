"""The table of scale: what it fits, what it tells, and that a budget ends a measurement."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from comparison import scale


def record(row: str, rows: int, classes: int, seconds: float, **more: Any) -> dict[str, Any]:
    known = {"memory": 5e8, "bytes": 1e5, "accuracy": 0.9}
    return {"row": row, "rows": rows, "classes": classes, "seconds": seconds, **known, **more}


def test_growth_is_the_exponent_of_a_power() -> None:
    assert scale.slope([(x, 3.0 * x**1.5) for x in (10, 100, 1000)]) == pytest.approx(1.5)
    assert math.isnan(scale.slope([(10, 3.0)]))


def test_texts_are_the_same_however_many_and_tell_their_class() -> None:
    words = [f"word{number}" for number in range(200)]
    few, many = (scale.texts(words, 5, "train", count) for count in (50, 400))
    assert many[:50] == few
    assert many[:50] != scale.texts(words, 5, "test", 50)
    by_class: dict[str, list[str]] = {}
    for row in many:
        by_class.setdefault(row["output"], []).extend(row["input"].split())
    assert len(by_class) == 5
    for said in by_class.values():  # a dozen words of 200 make up much of what a class says
        often = sorted((said.count(word) for word in set(said)), reverse=True)[: scale.OWN_WORDS]
        assert sum(often) > 0.35 * len(said)


@pytest.mark.parametrize(("seconds", "memory", "told"), [(0.3, 1e12, "time"), (60.0, 1e6, "memory")])
def test_what_runs_out_of_its_budget_is_ended_and_told(seconds: float, memory: float, told: str) -> None:
    cell = {"row": "iterative", "rows": 10, "classes": 2, "backbone": "nowhere", "folder": "."}
    assert scale.within(cell, seconds, memory) == {"out_of": told}


def test_what_was_asked_is_told_as_far_as_it_was_measured(tmp_path: Path) -> None:
    records = [
        record("iterative", 1000, 10, 2.0),
        record("iterative", 10_000, 10, 20.0, memory=5.1e8),
        record("iterative", 1000, 1000, 2.4),
        record("logistic regression", 1000, 10, 0.1, accuracy=0.8),
        {"row": "logistic regression", "rows": 10_000, "classes": 10, "out_of": "time"},
        record("features", 1000, 10, 1.0, ratio=0.93),
    ]
    scale.report(records, tmp_path, "Head.")
    told = (tmp_path / "results.md").read_text()
    assert "10 times the rows take 1.020 times the memory and 10.0 times the seconds" in told
    assert "1,000 rows, the most that logistic regression got to: 90.0% beside 80.0%" in told
    assert "1,000 classes take 1.20 times the seconds of 10" in told
    assert "0.93 to 0.93" in told
    assert "out of time" in told
    assert "1.00 |" in told  # the exponent of ours
    assert (tmp_path / "growth.png").stat().st_size > 1000
    json.dumps(records)
