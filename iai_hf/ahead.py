"""Reading ahead: the items of an iterator, made in a thread beside the one that uses them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
DEPTH = 2  # items that wait to be used
PATIENCE = 1.0  # seconds that whoever is done waits for what is being made


def ahead(items: Iterator[T], depth: int = DEPTH) -> Generator[T, None, None]:
    """The same items, up to `depth` of them made before they are asked for; to be closed, as by `contextlib.closing`.

    What making one raises is raised where that one would have come. Closing ends the thread behind the item that it is
    making. One that takes longer than `PATIENCE`, as of a network that hangs, is not waited for.
    """
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    closed = threading.Event()

    def put(*item: Any) -> None:
        while not closed.is_set():
            try:
                made.put(item, timeout=0.1)
                return
            except queue.Full:  # so that it is noticed where nobody asks any more
                continue

    def make() -> None:
        try:
            for item in items:
                put(True, item)
                if closed.is_set():
                    return
            put(False, None)
        except BaseException as error:
            put(False, error)

    thread = threading.Thread(target=make, name="reading ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = made.get()
            if more:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        closed.set()
        thread.join(PATIENCE)
