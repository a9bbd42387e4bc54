"""Cursor: a stream read chunk by chunk, the position behind the last example, and whether a state was left in it."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Generator, Iterable
from dataclasses import replace

from iai_hf.data import Record, Stream
from iai_hf.errors import StateError
from iai_hf.header import StateHeader, StreamPosition
from iai_hf.stream import chunk_of
from iai_hf.task import Chunk

log = logging.getLogger(__name__)


class Cursor:
    """Reads `stream`; `position` is the one behind the chunk that was read last.

    A stream that has no fingerprint, as a list or a generator, is recognised by a running digest of its records.
    """

    def __init__(self, stream: Stream, chunk_size: int, shuffle_seed: int | None) -> None:
        self.stream = stream
        named = () if stream.columns.numbers is not None else (stream.columns.input,)
        separator = stream.columns.label_separator
        read = (*named, stream.columns.output or "", *(() if separator is None else (separator,)))
        self.position = StreamPosition(stream.fingerprint or "", chunk_size, shuffle_seed, 0, read)

    def resume(self, header: StateHeader) -> bool:
        """Go to where a state was left; whether that was in what the file was before rows were appended to it.

        Raises:
            StateError: it was left in another stream, in one that was read otherwise, or in none that is known.
        """
        at = header.stream
        if at is None:
            if header.rows:
                raise StateError(
                    f"the state has {header.examples:,} examples and no position in a stream, as it was merged, "
                    "edited, or updated by hand; to adapt it to more data leave resume out"
                )
            return False
        ours = self.position
        if at.columns not in (None, ours.columns):
            raise StateError(
                f"the state was left in a stream of columns {at.columns}, this one has {ours.columns}; name the same "
                "to resume",
                options=("input_column", "output_column", "target", "label_separator"),
            )
        if (at.chunk_size, at.shuffle_seed) != (ours.chunk_size, ours.shuffle_seed):
            raise StateError(
                f"the state was left in a stream with chunk size {at.chunk_size} and shuffle seed {at.shuffle_seed}, "
                f"this one has {ours.chunk_size} and {ours.shuffle_seed}; use the same to resume"
            )
        if self.stream.fingerprint is None:
            self._skip(at)
        self.position = replace(self.position, examples=at.examples)
        if at.source == "" and at.columns is None and self.stream.fingerprint is None:
            log.warning("the state was left in a list or generator, by a version that did not note which one")
        elif ours.shuffle_seed is None and at.source != ours.source and self.stream.continues((at.source,)):
            log.warning(
                "%s has grown since the state was left: what was read is passed by, and what was appended is read",
                self.stream.file,
            )
            return True
        elif at.source != self.position.source:
            raise StateError(
                f"the state was left in another dataset ({at.source[:8]}) than this one ({self.position.source[:8]}); "
                "name that one, with the same unlabelled text: a file that was changed in what was read, or has grown "
                "and is shuffled, is another one. To adapt the state to more data leave resume out, begin with the "
                "state in the place of a method, save the outcome in another folder, and give it only rows that it "
                "has not read, since others count twice"
            )
        return False

    def chunks(self, stop: int | None) -> Generator[tuple[StreamPosition, Chunk], None, None]:
        """Chunks up to record `stop`, and the position behind each; `position` follows."""
        for records in self.stream.batches(self.position.chunk_size, self.position.examples, stop):
            if self.stream.fingerprint is None:
                self._digest(records)
            self.position = replace(self.position, examples=self.position.examples + len(records))
            yield self.position, chunk_of(records)

    def _skip(self, at: StreamPosition) -> None:
        """Read up to the position, so that the records there are known; a generator goes on from there."""
        rows, own = self.stream.rows(0), max(at.examples - self.stream.ahead, 0)
        behind = replace(self.stream, rows=lambda start: itertools.islice(rows, own))
        self._digest(itertools.islice(behind.records(), at.examples))
        self.stream = replace(self.stream, rows=lambda start: rows)

    def _digest(self, records: Iterable[Record]) -> None:
        source = self.position.source
        for record in records:
            source = hashlib.sha256(f"{source}{json.dumps(record)}".encode()).hexdigest()[:32]
        self.position = replace(self.position, source=source)
