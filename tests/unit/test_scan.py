"""Rows that are the same again and again are told."""

from __future__ import annotations

import logging

import pytest
from conftest import examples

from iai_hf import AutoAmortizer
from iai_hf.backbones import Backbone
from iai_hf.scan import COMPARED, Scan
from iai_hf.stream import Record


@pytest.mark.parametrize(("times", "told"), [(1, False), (3, True)])
def test_copies_are_told(encoder: Backbone, times: int, told: bool, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"input": f"{row['input']} {number}", "output": row["output"]} for number, row in enumerate(examples(40))]
    with caplog.at_level(logging.WARNING, "iai_hf"):
        AutoAmortizer.from_pretrained("iterative", backbone=encoder).adapt(rows * times, progress=False)
    assert ("80 of the first 120 rows are the same as an earlier one" in caplog.text) == told
    assert ("same as an earlier one" in caplog.text) == told


def test_only_the_first_rows_are_compared_and_all_are_counted() -> None:
    rows = [Record(str(number % COMPARED), "a") for number in range(2 * COMPARED)]
    scan = Scan.of(rows)
    assert (scan.length, scan.repeated, scan.repeats) == (2 * COMPARED, 0, False)
    assert scan.content == Scan.of(reversed(rows)).content != Scan.of(rows[1:]).content
