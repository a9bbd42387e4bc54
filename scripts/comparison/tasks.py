"""Tasks that were never trained or tuned on, and how their examples are streamed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from iai_hf import Chunk
from iai_hf.backbones import Backbone
from iai_hf.errors import DataError
from iai_hf.readers import read_file

TASKS = ("banking77", "sst2", "trec6", "tweet_emotion", "ag_news")
SIZES = (16, 16, 32)  # of the first chunks, so that 16, 32 and 64 are met; 64 from then on
MAX_TOKENS = 128
UNLABELLED = 2000  # texts that rows with unlabelled text read
Rows = list[dict[str, str]]


class Task:
    """A task's texts, and the features that all rows share.

    Raises:
        DataError: the folder has no train.jsonl.
    """

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        if not (folder / "train.jsonl").is_file():
            raise DataError(f"no task at {folder}; expected train.jsonl and test.jsonl there")
        self.name = folder.name
        self.train, self.test = ([row for _, row in read_file(folder / f"{part}.jsonl")] for part in ("train", "test"))
        self.labels = tuple(sorted({row["output"] for row in self.train}))
        self.queries, self.answers = [row["input"] for row in self.test], [row["output"] for row in self.test]
        self.numbers = {label: number for number, label in enumerate(self.labels)}
        self.backbone = backbone

    def rows(self, seed: int) -> Rows:
        """Training examples in an order that follows from the seed."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        return [self.train[i] for i in order.tolist()]

    def unlabelled(self, seed: int) -> list[str]:
        """Texts of the last rows of that order, without their labels."""
        return [row["input"] for row in self.rows(seed)[-UNLABELLED:]]

    def features(self, texts: Sequence[str]) -> torch.Tensor:
        """Of texts, `[n, d]`."""
        return self.backbone.features(texts, MAX_TOKENS).vectors


def chunk_of(rows: Rows) -> Chunk:
    """All rows as one chunk."""
    return Chunk(tuple(row["input"] for row in rows), tuple(row["output"] for row in rows))


def chunks(rows: Rows) -> Iterator[Chunk]:
    """The rows once, in small chunks first."""
    first, sizes = 0, iter(SIZES)
    while first < len(rows):
        part = rows[first : first + next(sizes, 64)]
        first += len(part)
        yield chunk_of(part)


def endless(rows: Rows, size: int) -> Iterator[Chunk]:
    """Batches of the rows, epoch after epoch, each in another order."""
    for epoch in itertools.count():
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(epoch)).tolist()
        for first in range(0, len(rows), size):
            yield chunk_of([rows[i] for i in order[first : first + size]])
