"""Reading ahead: the same items, errors and states, made in a thread beside the one that uses them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from conftest import examples

from iai_hf import AutoAmortizer, Chunk, TaskState, ahead
from iai_hf.ahead import DEPTH
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.backbones.reading import MOST_KEPT
from iai_hf.errors import DataError

ROWS = examples(96)


@pytest.fixture
def amortizer(encoder: Backbone) -> Amortizer:
    return AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"weights": None})


def equal(one: TaskState, other: TaskState) -> bool:
    return one.header == other.header and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "reading ahead"]


def test_items_are_made_before_they_are_asked_for_and_no_more_than_agreed() -> None:
    made, asked = [], threading.Event()

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            if len(made) == DEPTH + 2:  # those that wait, one in hand, and one that finds no place
                asked.set()
            yield number

    with closing(ahead.ahead(items())) as found:
        assert next(found) == 0
        assert asked.wait(20)
        time.sleep(0.3)
        assert len(made) == DEPTH + 2
        assert list(found) == list(range(1, 20))
    assert not threads()


def test_an_error_comes_as_itself_where_its_item_would_have() -> None:
    broken = ZeroDivisionError("of the third")

    def items() -> Iterator[int]:
        yield from (0, 1)
        raise broken

    with closing(ahead.ahead(items())) as found:
        read = [next(found), next(found)]
        with pytest.raises(ZeroDivisionError) as caught:
            next(found)
    assert caught.value is broken
    assert read == [0, 1]
    assert not threads()


def test_whoever_is_done_early_leaves_no_thread_and_closes_what_was_read() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with closing(ahead.ahead(items())) as found:
        assert next(found) == 0
    assert not threads()
    assert closed.wait(20)


@pytest.mark.parametrize("kind", ["list", "file", "shuffled", "dataset", "stream"])
def test_the_state_is_the_same_to_the_bit(amortizer: Amortizer, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data: dict[str, Any] = {
        "list": ROWS,
        "dataset": datasets.Dataset.from_list(ROWS),
        "stream": datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    }
    options: dict[str, Any] = {"chunk_size": 16, "shuffle_seed": 3 if kind == "shuffled" else None, "progress": False}
    one, other = (amortizer.adapt(data.get(kind, path), read_ahead=threaded, **options) for threaded in (True, False))
    assert equal(one, other)
    assert not threads()


def test_what_was_tokenised_ahead_is_what_the_model_reads(
    amortizer: Amortizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, where = amortizer.backbone, set[str]()
    ids = backbone.texts.ids

    def noted(texts: list[str]) -> list[list[int]]:
        if set(texts) & {row["input"] for row in ROWS}:
            where.add(threading.current_thread().name)
        return ids(texts)

    monkeypatch.setattr(backbone.texts, "ids", noted)
    amortizer.adapt(ROWS, chunk_size=16, progress=False)
    assert where == {"reading ahead"}
    assert len(backbone._kept) == 0


def test_batches_that_nobody_asks_for_do_not_pile_up(encoder: Backbone) -> None:
    for number in range(MOST_KEPT + 5):
        encoder.read_ahead([f"text {number}"])
    assert len(encoder._kept) == MOST_KEPT


def test_the_next_chunk_gets_ready_while_the_model_is_at_one(
    amortizer: Amortizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks, second, overlapped = [], threading.Event(), []
    update, read_ahead = amortizer.update, amortizer.read_ahead

    def made_ready(chunk: Chunk) -> None:
        read_ahead(chunk)
        chunks.append(chunk)
        if len(chunks) == 2:
            second.set()

    def waiting(state: TaskState, chunk: Chunk) -> TaskState:
        overlapped.append(second.wait(20))  # of the first chunk only a thread beside this one can bring it about
        return update(state, chunk)

    monkeypatch.setattr(amortizer, "update", waiting)
    monkeypatch.setattr(amortizer, "read_ahead", made_ready)
    amortizer.adapt(ROWS, chunk_size=8, progress=False)
    assert overlapped == [True] * 12


@pytest.mark.parametrize("own", ["a generator", "rows of one's own class"])
def test_rows_that_may_belong_to_a_thread_or_are_gone_once_read_are_not_read_ahead(
    amortizer: Amortizer, own: str
) -> None:
    main, read = threading.current_thread(), []

    class Rows:
        def __iter__(self) -> Iterator[dict[str, str]]:
            for row in ROWS:
                assert threading.current_thread() is main
                read.append(row)
                yield row

    def note(state: TaskState, chunk: Chunk) -> None:
        assert len(read) <= max(state.header.examples, 256)

    rows = Rows()
    amortizer.adapt(iter(rows) if own == "a generator" else rows, chunk_size=8, on_step=note, progress=False)


def test_a_bad_row_ends_a_run_behind_all_chunks_before_it(
    amortizer: Amortizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = ROWS * 4  # more than are looked at before a run begins
    rows = datasets.Dataset.from_list([*good, {"input": "", "output": "sport"}]).to_iterable_dataset()
    with pytest.raises(DataError, match="'input' is"):
        amortizer.adapt(rows, chunk_size=16, output=tmp_path / "state", progress=False)
    assert "holds the state of the first 384 rows" in caplog.text
    whole = amortizer.adapt(rows.take(len(good)), chunk_size=16, progress=False)
    assert equal(TaskState.from_pretrained(tmp_path / "state"), whole)
    assert not threads()


CTRL_C = """
import sys, threading, time
from iai_hf.ahead import ahead
def items():
    yield 0
    print("reading", flush=True)
    time.sleep(600)  # a network that hangs
for item in ahead(items()):
    pass
"""


def test_ctrl_c_is_heard_while_the_reading_hangs() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CTRL_C],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background ignores Ctrl-C
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"reading\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert b"KeyboardInterrupt" in told
