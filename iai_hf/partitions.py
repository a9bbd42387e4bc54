"""States of a dataset's partitions, for engines that map and reduce, and the tree of merges that joins them.

    from functools import partial
    made = partial(adapt_partition, method="iterative", task=TaskSpec("classification"))

    frame.mapInPandas(made, STATE_SCHEMA)                                       # Spark: a DataFrame
    data.map_batches(made, batch_format="pandas", batch_size=None)              # Ray Data: a Dataset, block by block

    state = merge_tree(row["state"] for row in found.toLocalIterator())         # Spark; in Ray Data found.iter_rows()

An engine that has lost a worker reads its partition again. Partitions must be disjoint: one that was read twice is
refused where the states are merged.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from iai_hf.auto import AutoAmortizer
from iai_hf.cursor import Cursor
from iai_hf.data import open_stream
from iai_hf.errors import StateError
from iai_hf.methods import check_answerable, check_takes_unlabelled
from iai_hf.state import TaskState
from iai_hf.stream import Columns
from iai_hf.task import TaskSpec

if TYPE_CHECKING:
    import pandas

    from iai_hf.amortizer import Amortizer

AT_ONCE = 8  # states that are merged together
STATE_SCHEMA = "state binary, examples long"  # of what `adapt_partition` yields, as Spark wants it told


def adapt_partition(
    frames: pandas.DataFrame | Iterable[pandas.DataFrame],
    *,
    method: str,
    task: TaskSpec,
    backbone: str | None = None,
    config: Mapping[str, Any] | None = None,
    columns: Columns = Columns(),  # noqa: B008 - a frozen value
    chunk_size: int = 64,
) -> Iterator[pandas.DataFrame]:
    """The state of one partition, as a frame of one row: its bytes in `state`, and how many `examples` it has read.

    Nothing comes of a partition without rows. The amortizer is loaded once in a process.

    Args:
        frames: the partition's rows, in one frame or several.
        method, backbone, config: as `AutoAmortizer.from_pretrained` takes them.
        task: its kind, so that no partition is taken for another one than the rest; labels are joined in the merge.
        columns: names of the columns that are read.

    Raises:
        DataError: bad rows, named by their number in the partition; or a method that answers no such task.
        ConfigError: the settings are wrong.
    """
    import pandas

    if isinstance(frames, pandas.DataFrame):
        frames = (frames,)
    rows: Iterator[dict[Any, Any]] = (row for frame in frames for row in frame.to_dict("records"))
    first = next(rows, None)
    if first is None:
        return
    amortizer = _amortizer(method, backbone, json.dumps(dict(config or {}), sort_keys=True))
    if columns.allow_missing_outputs:
        check_takes_unlabelled(amortizer)
    stream = open_stream(itertools.chain([first], rows), columns)
    cursor, state = Cursor(stream, chunk_size, None), amortizer.init_state(stream.task(task, most=amortizer.max_labels))
    for position, chunk in cursor.chunks(None):  # a single label is no fault here: that is judged where all are merged
        state = amortizer.update(state, chunk).at(position)
    yield pandas.DataFrame({"state": [state.to_bytes()], "examples": [state.header.examples]})


def merge_tree(
    states: Iterable[bytes | TaskState], *, backbone: str | None = None, amortizer: Amortizer | None = None
) -> TaskState:
    """One state from those of disjoint partitions, merged eight by eight, so that few of them are held at a time.

    What a merge makes of a sample of all its parts it makes better of more of them, so they are not merged in pairs.

    Args:
        states: as `adapt_partition` makes them, in any number; of a single one, that one.
        backbone: where it lies here, if not where the states say.
        amortizer: that made the states; by default it is loaded as they say.

    Raises:
        StateError: there is none, one is damaged, they differ in method or backbone, or two have read the same data.
        ConfigError: the method's states can't be merged.
        DataError: all partitions together have too few labels.
    """
    waiting: list[tuple[int, TaskState]] = []  # how often merged, falling; fewer than `AT_ONCE` of each
    for given in (states,) if isinstance(states, (bytes, str)) else states:
        if not isinstance(given, (TaskState, bytes, bytearray, memoryview)):
            raise StateError(
                f"got a {type(given).__name__} to merge; expected states or their bytes, e.g. `frame['state'][0]` of "
                "each frame that `adapt_partition` yields"
            )
        state = given if isinstance(given, TaskState) else TaskState.from_bytes(bytes(given))
        amortizer = amortizer or AutoAmortizer.for_state(state, backbone)
        waiting.append((0, state))
        while len(waiting) >= AT_ONCE and waiting[-AT_ONCE][0] == waiting[-1][0]:
            waiting[-AT_ONCE:] = [_joined(amortizer, *waiting[-AT_ONCE:])]
    if amortizer is None:
        raise StateError("there is no state to merge; expected at least one of a partition that has rows")
    while len(waiting) > 1:
        waiting[-AT_ONCE:] = [_joined(amortizer, *waiting[-AT_ONCE:])]
    check_answerable(waiting[0][1].task)
    return waiting[0][1]


def _joined(amortizer: Amortizer, *parts: tuple[int, TaskState]) -> tuple[int, TaskState]:
    return parts[-1][0] + 1, amortizer.merge([state for _, state in parts])


@functools.lru_cache(maxsize=2)
def _amortizer(method: str, backbone: str | None, config: str) -> Amortizer:
    return AutoAmortizer.from_pretrained(method, backbone=backbone, config=json.loads(config))
