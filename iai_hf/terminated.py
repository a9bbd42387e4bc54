"""A process that is told to end, by `kill`, a scheduler or a container, ends as by Ctrl-C: what was read is kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM: whoever cleans up behind Ctrl-C does so behind it."""


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` where it would end the process at once: in the main thread, where none handles it."""
    taken = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    if taken or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ending(error: KeyboardInterrupt) -> tuple[str, int]:
    """What has ended a run, in a word, and the exit status that shells give it."""
    return ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
