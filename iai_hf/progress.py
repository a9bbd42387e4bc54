"""Progress of a run: rows, tokens a second and time left; a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger(__name__)
LINE_SECONDS = 60.0  # between two lines where there is no terminal
SPEED_SECONDS = 1.0  # least time over which tokens a second are told


class Progress:
    """To be entered; `update` is told how many rows came.

    Args:
        total: rows that will have been read at the end, None where that is not known.
        start: rows that were read before.
        show: show anything at all.
        tokens: how many tokens were read so far.
        clock: seconds.
    """

    def __init__(
        self,
        total: int | None,
        start: int,
        show: bool,
        tokens: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from huggingface_hub.utils import are_progress_bars_disabled, tqdm

        self.bar = tqdm(total=total, initial=start, unit=" examples", desc="adapt", disable=None if show else True)
        # A bar is not drawn into a file, as under a scheduler: there lines tell.
        self.lines = show and self.bar.disable and not are_progress_bars_disabled()
        self.total, self.start, self.rows, self.tokens, self.clock = total, start, start, tokens, clock
        self.began = self.told = clock()
        self.before = tokens()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.lines and kind is None:
            self._tell()
        self.bar.close()

    def update(self, rows: int) -> None:
        """So many more rows were read."""
        self.rows += rows
        if not self.bar.disable:
            self.bar.set_postfix_str(self.speed, refresh=False)
        self.bar.update(rows)
        if self.lines and self.clock() - self.told >= LINE_SECONDS:
            self._tell()

    @property
    def speed(self) -> str:
        """Tokens a second since it began; empty while there is none to tell."""
        seconds, tokens = self.clock() - self.began, self.tokens() - self.before
        return f"{tokens / seconds:,.0f} tokens/s" if tokens and seconds >= SPEED_SECONDS else ""

    @property
    def left(self) -> str:
        """Time that is left at the speed so far; empty where that is not known."""
        seconds, rows = self.clock() - self.began, self.rows - self.start
        if self.total is None or not rows:
            return ""
        minutes = round(seconds / rows * max(self.total - self.rows, 0) / 60)
        return f"{minutes // 60}:{minutes % 60:02d} hours left"

    def _tell(self) -> None:
        self.told = self.clock()
        of = "" if self.total is None else f" of {self.total:,}"
        log.info("%s", ", ".join(filter(None, (f"{self.rows:,}{of} examples", self.speed, self.left))))
