"""StateHeader: all of a state that is not a tensor, as its files tell it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from iai_hf.task import TaskSpec

FORMAT_VERSION = 3
BEHIND = "+"  # in a stream's source: the data's own fingerprint stands before, that of unlabelled rows behind it
UNLABELLED = "unlabelled"  # among a header's counts: rows without a label


@dataclass(frozen=True)
class StreamPosition:
    """How far a stream was read: enough to go on after a crash without losing or repeating an example."""

    source: str  # fingerprint of the data; of a list or generator, a digest of the records up to here
    chunk_size: int
    shuffle_seed: int | None
    examples: int  # rows of this stream that the state has absorbed
    # Of text and answer, or of a table's answer, and what separates labels; format 1 did not note them.
    columns: tuple[str, ...] | None = None

    @property
    def labelled(self) -> str:
        """Fingerprint of the data whose labels were read."""
        return self.source.split(BEHIND)[0]


@dataclass(frozen=True)
class Edit:
    """A line of a state's history: what was changed by hand (see `iai_hf.edits`). No text of an example is in it.

    Attributes:
        edit: the method that did it, e.g. "forget".
        examples: labelled ones that it was about.
        unlabelled: rows without a label that it was about.
        labels: that it was about, as they were called before.
        name: of the label that came of it, where there is one.
        approximate: what could not be undone exactly: by tensor (or by the prefix of several), which share of the
            examples behind it the edit was about. Empty where all is as if it had always been so.
        restepped: of how many retained examples such parts were made anew instead; None where none were.
    """

    edit: str
    examples: int = 0
    unlabelled: int = 0
    labels: tuple[str, ...] = ()
    name: str | None = None
    approximate: Mapping[str, float] = field(default_factory=dict)
    restepped: int | None = None


@dataclass(frozen=True)
class StateHeader:
    """All of a state that is not a tensor. Plain JSON values only.

    Attributes:
        method: registered name of the amortizer, e.g. "iterative".
        config: the amortizer's configuration, so that a state alone suffices to rebuild it.
        amortizer: fingerprint of method, configuration and learned weights.
        backbone: Hub id or folder of the backbone.
        backbone_revision: commit that the backbone was at, None where it has none.
        backbone_fingerprint: digest of the backbone's weights and tokenizer.
        backbone_source: where its weights came from, in words; "" where that was not noted.
        weights_digest: digest of the learned weights that `config` names, None where there are none.
        task: kind and label names.
        examples, steps: labelled examples and chunks absorbed over all streams.
        counts: rows without a label (`unlabelled`), and what the method has to tell, e.g. texts cut at `max_tokens`.
        stream: position in the stream read last, None before the first.
        datasets: Hub ids of the datasets read, for the card; files of one's own are not named.
        history: edits, in order; states of before there were any have none.
        merged: fingerprints of the data that merged parts had read, and of earlier streams, and digests of their rows,
            which are the same in any order and form of file: none is to count twice.
    """

    method: str
    config: Mapping[str, Any]
    amortizer: str
    backbone: str
    backbone_fingerprint: str
    task: TaskSpec
    examples: int = 0
    steps: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    stream: StreamPosition | None = None
    backbone_revision: str | None = None
    backbone_source: str = ""
    datasets: tuple[str, ...] = ()
    weights_digest: str | None = None
    history: tuple[Edit, ...] = ()
    merged: tuple[str, ...] = ()

    @property
    def read(self) -> tuple[str, ...]:
        """Fingerprints of the data whose labels were read, as far as they are known."""
        now = () if self.stream is None else (self.stream.labelled,)
        return tuple(dict.fromkeys((*self.merged, *now)))

    @property
    def rows(self) -> int:
        """Rows absorbed, labelled or not."""
        return self.examples + self.counts.get(UNLABELLED, 0)

    def to_json(self) -> str:
        """One line, keys in order."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> StateHeader:
        """The header that `to_json` wrote; KeyError or TypeError where it is none."""
        values = json.loads(text)
        task = values.pop("task")
        stream = values.pop("stream")
        return cls(
            task=TaskSpec(task["kind"], tuple(task["labels"]), tuple(task.get("columns", ()))),
            stream=StreamPosition(**stream | {"columns": _tuple(stream.get("columns"))}) if stream else None,
            datasets=tuple(values.pop("datasets", ())),
            merged=tuple(values.pop("merged", ())),
            history=tuple(Edit(**line | {"labels": tuple(line["labels"])}) for line in values.pop("history", ())),
            **values,
        )


def _tuple(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
