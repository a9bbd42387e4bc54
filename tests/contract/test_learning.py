"""Every method learns: each row of the matrix says in what way it can be seen to, on a backbone that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import LABELS, VOCABULARY, WORDS, examples
from matrix import COUNTED, METHODS, adapt, chunk_of, input_of, made, rows_of, task_of

from iai_hf import AutoAmortizer, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.tables.numeric import Numeric
from iai_hf.tables.solvers.solver import Batch
from iai_hf.tables.training import TableCurriculum
from iai_hf.tables.training.families import Family, TableEpisode
from iai_hf.training import TrainingConfig, train

MARGIN = 0.3  # nats an answer
TASK = [name for name, row in METHODS.items() if row.learns == "task"]
ROWS = [name for name, row in METHODS.items() if row.learns == "rows"]
NAMES = [name for name, row in METHODS.items() if row.learns == "names"]
META_TRAINED = [name for name, row in METHODS.items() if row.learns == "meta-trained"]


def test_each_row_of_the_matrix_is_seen_to_learn() -> None:
    assert sorted(TASK + ROWS + NAMES + META_TRAINED) == sorted(METHODS)


@pytest.mark.parametrize("name", TASK)
def test_it_learns_a_task(name: str, encoder: Backbone, causal: Backbone) -> None:
    amortizer = made(METHODS[name], encoder, causal)
    assert hits(amortizer, adapt(amortizer, rows_of(amortizer, 300), chunk_size=32)) > 50  # chance is 33


@pytest.mark.parametrize("name", ROWS)
def test_it_learns_rows_by_heart(name: str, encoder: Backbone, causal: Backbone) -> None:
    amortizer = made(METHODS[name], encoder, causal)
    rows = rows_of(amortizer, 8)
    before = own = other = amortizer.init_state(task_of(amortizer))
    for _ in range(40):
        own = amortizer.update(own, chunk_of(rows))
        other = amortizer.update(other, chunk_of(relabelled(rows)))
    gained(amortizer, rows, before, own, other)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_other_names(name: str, smollm: Backbone) -> None:
    row = METHODS[name]
    amortizer = AutoAmortizer.from_pretrained(row.method, backbone=smollm, config=row.config)
    rows = examples(8, seed=1)
    before = amortizer.init_state(task_of(amortizer))
    own, other = (amortizer.update(before, chunk_of(chunk)) for chunk in (relabelled(rows), rows))
    gained(amortizer, relabelled(rows), before, own, other)


@pytest.mark.parametrize("name", META_TRAINED)
def test_it_learns_a_task_once_it_is_trained_to(name: str, encoder: Backbone, causal: Backbone, tmp_path: Path) -> None:
    amortizer = made(METHODS[name], encoder, causal)
    assert isinstance(amortizer, Numeric)
    rows = rows_of(amortizer, 32)
    before = amortizer.init_state(task_of(amortizer))
    assert hits(amortizer, adapt(amortizer, rows, before, chunk_size=16)) == hits(amortizer, before)
    config = TrainingConfig(
        method=amortizer.method,
        backbone="numeric/llama",
        tasks=["counts"],
        train_steps=300,
        episodes_per_step=1,
        learning_rate=0.01,
        queries=32,
        chunk_sizes=[16, 16],
        most_steps=2,
        evaluate_every=300,
    )
    family = WordCounts("counts", classification=True, inputs=len(COUNTED), outputs=len(LABELS))
    curriculum = TableCurriculum(amortizer, family, config)
    train(amortizer, curriculum, config, Accelerator(cpu=True), tmp_path, progress_bar=False)
    assert hits(amortizer, adapt(amortizer, rows, chunk_size=16)) > 50  # chance is 33


@dataclass(frozen=True)
class WordCounts(Family):
    """Counts of words, as of the matrix's examples; what the classes are called is drawn anew for each task."""

    def sample(
        self, generator: torch.Generator, tasks: int, examples: int, queries: int, shifted: bool = False
    ) -> TableEpisode:
        def drawn(most: int, *shape: int) -> torch.Tensor:
            return torch.randint(most, (tasks, examples + queries, *shape), generator=generator)

        each = len(WORDS[LABELS[0]])
        classes = drawn(len(LABELS))
        words = torch.cat([drawn(len(VOCABULARY), 4), drawn(each, 4) + each * classes[..., None]], -1)
        counted = torch.tensor([VOCABULARY.index(word) for word in COUNTED])
        x = (words[..., None] == counted).sum(2).float()
        x = (x - x.mean((0, 1))) / x.std((0, 1))
        called = torch.stack([torch.randperm(len(LABELS), generator=generator) for _ in range(tasks)])
        y = torch.nn.functional.one_hot(called.gather(1, classes), len(LABELS)).float()
        return TableEpisode(
            Batch(x[:, :examples], y[:, :examples]), Batch(x[:, examples:], y[:, examples:]), exact=None
        )


def hits(amortizer: Amortizer, state: TaskState) -> int:
    """Right answers to a hundred queries."""
    test = rows_of(amortizer, 100, seed=5)
    found = amortizer.predict(state, list(map(input_of, test))).outputs
    return sum(answer == row["output"] for answer, row in zip(found, test, strict=True))


def relabelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows under the name of the next class."""
    return [{**row, "output": LABELS[(LABELS.index(row["output"]) + 1) % len(LABELS)]} for row in rows]


def gained(
    amortizer: Amortizer, rows: list[dict[str, Any]], before: TaskState, own: TaskState, other: TaskState
) -> None:
    """The rows' outputs are likelier than before, and than in a state that has read other outputs."""

    def likelihood(state: TaskState) -> float:
        found = amortizer.predict(state, list(map(input_of, rows)))
        assert found.log_probs is not None
        places = torch.tensor([found.labels.index(row["output"]) for row in rows])
        return float(found.log_probs.gather(1, places[:, None]).mean())

    assert likelihood(own) > likelihood(before) + MARGIN
    assert likelihood(own) > likelihood(other) + MARGIN
