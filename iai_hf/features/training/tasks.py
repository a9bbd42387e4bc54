"""Feature tasks: labelled datasets as the features of a frozen backbone, read once and cached on disk."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from iai_hf.data import open_stream
from iai_hf.training.curriculum import task_name

if TYPE_CHECKING:
    from iai_hf.features.frozen_features import FrozenFeatures

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FeatureTask:
    """A task as a head sees it.

    Attributes:
        name: of its folder or file.
        features: float32 `[examples, d]`.
        targets: int64 `[examples]`.
        names: features of the label names, `[templates, labels, d]`.
        labels: in the order of `targets`.
    """

    name: str
    features: torch.Tensor
    targets: torch.Tensor
    names: torch.Tensor
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.targets)


def load_tasks(files: Sequence[Path], amortizer: FrozenFeatures, max_examples: int) -> list[FeatureTask]:
    """The classification tasks among the files, with features as `amortizer` sees them; others are left out."""
    tasks = []
    for path in files:
        stream = open_stream(path)
        if stream.task().kind != "classification":
            log.info("%s: answers in free text, left out", task_name(path))
            continue
        records = list(stream.records())
        labels = tuple(sorted({record.output for record in records}))
        stride = max(len(records) / max_examples, 1.0)
        records = [records[int(i * stride)] for i in range(int(len(records) / stride))]
        class_of = {label: place for place, label in enumerate(labels)}
        tasks.append(
            FeatureTask(
                task_name(path),
                amortizer.features([record.input for record in records])[0],
                torch.tensor([class_of[record.output] for record in records]),
                amortizer.name_features(labels),
                labels,
            )
        )
        log.info("%s: %s examples, %s labels", task_name(path), f"{len(records):,}", len(labels))
    return tasks
