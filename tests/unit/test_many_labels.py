"""Over a thousand labels: as many as a setting allows, at a size that is told before; an id is not taken for them."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.errors import ConfigError, DataError
from iai_hf.task import LABEL_LIMIT, MAX_LABELS

LABELS = 1500
METHODS = ("iterative", "iterative-explicit", "iterative-implicit")


def rows(labels: int = LABELS, times: int = 2) -> list[dict[str, str]]:
    """Each label so many times, in blocks of all labels; each has a text of its own."""
    drawn = random.Random(0)
    texts = ["".join(drawn.choices(ascii_lowercase + " ", k=12)) for _ in range(labels)]
    return [{"input": text, "output": f"label {i}"} for _ in range(times) for i, text in enumerate(texts)]


def on(encoder: Backbone, method: str = "iterative", most: int = LABELS, **settings: Any) -> Amortizer:
    config = {"weights": None, "adapter": None, "max_labels": most, **settings}
    return AutoAmortizer.from_pretrained(method, backbone=encoder, config=config)


@pytest.mark.parametrize("method", METHODS)
def test_as_many_labels_as_are_allowed(method: str, encoder: Backbone, tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    amortizer = on(encoder, method)
    state = amortizer.adapt(rows(), chunk_size=512, progress=False)  # told to be a classification, each label twice
    assert (state.task.kind, len(state.task.labels), state.header.examples) == ("classification", LABELS, 2 * LABELS)

    none = amortizer.init_state(TaskSpec("classification"))
    kept = ("features", "targets", "calibration.", "converged.")  # examples, however many labels there are
    head = sum(tensor.nbytes for name, tensor in state.tensors.items() if not name.startswith(kept))
    told = amortizer.bytes_a_label(state.task)  # type: ignore[attr-defined]
    assert head == none.nbytes + LABELS * told
    assert f"a label takes {told:,} bytes" in caplog.text
    assert f"{LABELS:,} of them {LABELS * told / 1e6:,.1f} MB" in caplog.text

    queries = [rows()[i]["input"] for i in (7, 1400)]
    found = amortizer.predict(state, queries)
    state.save_pretrained(tmp_path)
    again = AutoAmortizer.for_state(loaded := TaskState.from_pretrained(tmp_path), encoder)
    assert torch.equal(again.predict(loaded, queries).log_probs, found.log_probs)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"over {LABELS} labels, the last one 'one more'"):
        again.update(loaded, Chunk(("a thing",), ("one more",)))


def test_parts_with_many_labels_are_merged(encoder: Backbone) -> None:
    amortizer, whole = on(encoder), rows()
    parts = [amortizer.adapt(whole[first::2], chunk_size=512, progress=False) for first in (0, 1)]
    merged = amortizer.merge(parts)
    assert len(merged.task.labels) == LABELS
    order = [merged.task.labels.index(f"label {i}") for i in range(LABELS)]
    assert merged.tensors["counts"][order].tolist() == [2.0] * LABELS
    together = amortizer.adapt(whole, chunk_size=512, progress=False)
    torch.testing.assert_close(merged.tensors["gram"], together.tensors["gram"])
    torch.testing.assert_close(merged.tensors["sums"][order], together.tensors["sums"])
    with pytest.raises(DataError, match="over 1000 labels"):
        on(encoder, most=MAX_LABELS).merge(parts)


def test_a_state_that_is_full_goes_on_with_more_room(encoder: Backbone) -> None:
    narrow = on(encoder, most=MAX_LABELS)
    task = TaskSpec("classification", tuple(f"label {i}" for i in range(MAX_LABELS)))
    state = narrow.update(narrow.init_state(task), Chunk(("a", "b"), ("label 0", "label 1")))
    more = Chunk(("c",), ("label 1000",))
    with pytest.raises(DataError, match=r"over 1000 labels.*as an id.*max_labels.*10000"):
        narrow.update(state, more)
    wider = AutoAmortizer.for_state(state, encoder, config={"max_labels": LABELS})
    assert len(wider.update(state, more).task.labels) == MAX_LABELS + 1


def test_an_id_is_not_taken_for_a_label(encoder: Backbone, caplog: Any) -> None:
    data, named = rows(1200, 1), TaskSpec("classification")
    with pytest.raises(DataError, match=r"over 1000 different outputs.*as an id, another column is the output"):
        on(encoder, most=MAX_LABELS).adapt(data, task=named, progress=False)
    with pytest.raises(DataError, match="generation"):  # where the kind is not named, each once is no class
        on(encoder).adapt(data, progress=False)
    on(encoder).adapt(data, task=named, chunk_size=512, progress=False)
    assert "the 1,200 rows have 1,200 different outputs, e.g. 'label 0'" in caplog.text
    assert "as an id" in caplog.text


@pytest.mark.parametrize("most", [1, LABEL_LIMIT + 1])
def test_room_is_bounded(most: int, encoder: Backbone) -> None:
    with pytest.raises(ConfigError, match=f"max_labels is {most}; expected 2 to {LABEL_LIMIT}"):
        on(encoder, most=most)
