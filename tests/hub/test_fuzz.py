"""Thousands of damaged files: each is a good load or a clear error, never a crash, a hang or a huge allocation."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import examples

from iai_hf import AutoAmortizer, TaskState
from iai_hf.backbones import Backbone
from iai_hf.card import state_card
from iai_hf.errors import IAIError
from iai_hf.evaluation_file import read_evaluation
from iai_hf.files import CONFIG_FILE, EVALUATION_FILE, STATE_FILE

MUTATIONS = 5000  # of each of two kinds of file


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled or replaced, a few at a time; more often near the start, where headers are."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        limit = len(changed) if chance.random() < 0.5 else min(len(changed), 2000)
        place = chance.randrange(max(limit, 1))
        kind = chance.randrange(4)
        if kind == 0 and changed:
            changed[min(place, len(changed) - 1)] = chance.randrange(256)
        elif kind == 1:
            del changed[place : place + chance.randint(1, 64)]
        elif kind == 2:
            changed[place:place] = changed[place : place + chance.randint(1, 64)]
        else:
            changed[place : place + 1] = chance.choice(
                [b"null", b"-1", b"1e309", b"[]", b"{}", b'"', b"\xff", b"9" * 20]
            )
    return bytes(changed)


def survives(load: Callable[[], object], path: Path, content: bytes, chance: random.Random) -> int:
    """How many mutations were refused, by an error of ours; the others load, and no other error is raised."""
    refused = 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(content, chance))
        try:
            load()
        except IAIError as error:
            assert str(error).strip()
            refused += 1
    return refused


@pytest.fixture
def folder(encoder: Backbone, tmp_path: Path) -> Path:
    amortizer = AutoAmortizer.from_pretrained("iterative-explicit", backbone=encoder, config={"max_features": 8})
    return amortizer.adapt(examples(12), progress=False).save_pretrained(tmp_path / "state")


def test_damaged_states(folder: Path) -> None:
    path = folder / STATE_FILE
    refused = survives(lambda: TaskState.from_pretrained(folder), path, path.read_bytes(), random.Random(0))
    assert refused > 0.9 * MUTATIONS


def test_damaged_configurations(causal: Backbone, tmp_path: Path) -> None:
    amortizer = AutoAmortizer.from_pretrained("in-context", backbone=causal)
    folder = amortizer.save_pretrained(tmp_path / "amortizer")
    path = folder / CONFIG_FILE

    def load() -> object:
        return AutoAmortizer.from_pretrained(folder, backbone=causal)

    refused = survives(load, path, path.read_bytes(), random.Random(1))
    assert refused > 0.3 * MUTATIONS


def test_damaged_evaluations(folder: Path) -> None:
    point = {"examples": 12, "accuracy": 0.5, "adapt_seconds": 0.1}
    path = folder / EVALUATION_FILE
    state = TaskState.from_pretrained(folder)
    good = {"test": "films", "test_examples": 20, "state": state.digest, "curve": [point, point]}

    def card() -> object:
        return state_card(state.header, state.nbytes, "someone/films", evaluation=read_evaluation(folder, state.digest))

    refused = survives(card, path, json.dumps(good).encode(), random.Random(2))
    assert refused > 0.3 * MUTATIONS


def test_a_header_that_asks_for_absurd_memory_is_refused(folder: Path) -> None:
    header = {"huge": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}
    text = json.dumps(header).encode()
    (folder / STATE_FILE).write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(IAIError, match="no readable task state"):
        TaskState.from_pretrained(folder)
    (folder / STATE_FILE).write_bytes(struct.pack("<Q", 2**62) + text)
    with pytest.raises(IAIError, match="no readable task state"):
        TaskState.from_pretrained(folder)
