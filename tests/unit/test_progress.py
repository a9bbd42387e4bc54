"""Progress: rows, tokens a second and the time left, on a terminal and elsewhere."""

from __future__ import annotations

import logging

import pytest
from conftest import examples

from iai_hf import AutoAmortizer
from iai_hf.backbones import Backbone
from iai_hf.progress import LINE_SECONDS, Progress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_where_there_is_no_terminal_a_line_tells_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iai_hf")
    clock, tokens = Clock(), [50]
    with Progress(1000, 100, True, lambda: tokens[0], clock) as progress:
        for _ in range(3):
            clock.now += LINE_SECONDS / 2
            tokens[0] += 3000
            progress.update(100)
    assert caplog.messages == [
        "300 of 1,000 examples, 100 tokens/s, 0:04 hours left",
        "400 of 1,000 examples, 100 tokens/s, 0:03 hours left",
    ]


def test_what_is_not_known_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "iai_hf")
    with Progress(None, 0, True, lambda: 0, Clock()) as progress:
        progress.update(7)
    with Progress(10, 0, False, lambda: 0, Clock()) as progress:  # nor where nothing is asked for
        progress.update(7)
    with pytest.raises(ZeroDivisionError), Progress(10, 0, True, lambda: 0, Clock()):
        raise ZeroDivisionError
    assert caplog.messages == ["7 examples"]


def test_tokens_of_all_variants_of_a_backbone_are_counted_once(
    encoder: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"weights": None})
    before, rows = encoder.meter.tokens, examples(24)
    state = amortizer.init_state()
    amortizer.features([row["input"] for row in rows])  # type: ignore[attr-defined]
    read = encoder.features([row["input"] for row in rows]).tokens
    assert encoder.meter.tokens - before == 2 * read
    assert encoder.variant("other").meter is encoder.meter
    amortizer.adapt(rows, state, progress=False)
    assert encoder.meter.tokens - before >= 3 * read
