"""Text tasks: labelled datasets of either kind as they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from iai_hf.data import Record, open_stream
from iai_hf.task import Kind
from iai_hf.training.curriculum import task_name

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TextTask:
    """A task as a language model sees it.

    Attributes:
        name: of its folder or file.
        kind: classification, where outputs are labels that may be renamed, or generation.
        records: its examples.
    """

    name: str
    kind: Kind
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    @cached_property
    def mean_length(self) -> float:
        """Characters of an input."""
        return sum(len(record.input) for record in self.records) / max(len(self.records), 1)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Its outputs, each once."""
        return tuple(sorted({record.output for record in self.records}))

    @cached_property
    def first_words(self) -> tuple[str, ...]:
        """The words that its inputs begin with."""
        return tuple(sorted({record.input.split()[0] for record in self.records}))


def load_text_tasks(files: Sequence[Path], max_examples: int) -> list[TextTask]:
    """The tasks in the files, each cut to `max_examples`, evenly spaced."""
    tasks = []
    for path in files:
        stream = open_stream(path)
        records = list(stream.records())
        stride = max(len(records) / max_examples, 1.0)
        kept = tuple(records[int(i * stride)] for i in range(int(len(records) / stride)))
        tasks.append(TextTask(task_name(path), stream.task().kind, kept))
        log.info("%s: %s examples, %s", task_name(path), f"{len(kept):,}", stream.task().kind)
    return tasks
