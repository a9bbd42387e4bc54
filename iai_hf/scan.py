"""Scan: what one pass over all rows tells, before anything is learned from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

from iai_hf.stream import Record
from iai_hf.task import LABEL_LIMIT, distinct

COMPARED = 20_000  # rows, the first ones, in which repeated ones are counted
FEWEST, MANY = 20, 0.5  # repeated rows, and their share, from which on that is told


class Scan(NamedTuple):
    """Of all records.

    Attributes:
        outputs: the different ones, up to one more than there may be labels.
        content: a sum over the records' digests, so that it is the same in any order.
        repeated: among the first `COMPARED` records, those that are the same as an earlier one.
    """

    length: int
    outputs: frozenset[str]
    content: str
    repeated: int

    @classmethod
    def of(cls, records: Iterable[Record]) -> Scan:
        """One pass."""
        length, outputs, total, seen = 0, set[str](), 0, set[int]()
        for record in records:
            length += 1
            own = int.from_bytes(hashlib.blake2b(repr(tuple(record)).encode(), digest_size=16).digest(), "little")
            total += own
            if length <= COMPARED:
                seen.add(own)
            if len(outputs) <= LABEL_LIMIT and record.output is not None:
                outputs.update(distinct([record.output]))
        content = f"rows:{length}:{total % 2**128:032x}"
        return cls(length, frozenset(outputs), content, min(length, COMPARED) - len(seen))

    def __str__(self) -> str:
        return (
            f"{self.repeated:,} of the first {min(self.length, COMPARED):,} rows are the same as an earlier one, and "
            "each counts: if they are copies, leave them out, since what is learned from copies is too sure"
        )

    @property
    def repeats(self) -> bool:
        """Whether so many rows are the same that it should be told."""
        return self.repeated >= max(FEWEST, MANY * min(self.length, COMPARED))
