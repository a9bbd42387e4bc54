"""Typed errors. Each message says what was got, what was expected and how to mend it."""

import difflib
from collections.abc import Iterable, Sequence


class IAIError(Exception):
    """Base of every error that a user can mend; the command line prints it in one line, exit status 2.

    Attributes:
        options: names of the parameters that mend it, which the command line has as options.
    """

    def __init__(self, message: str, *, options: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.options = tuple(options)


class DataError(IAIError, ValueError):
    """The dataset is missing, empty, malformed or does not fit the task."""


class StateError(IAIError):
    """A task state can't be read, written, or used with this amortizer or backbone."""


class BackboneError(IAIError):
    """A backbone can't be loaded, or lacks what a method needs."""


class HubError(IAIError):
    """A repository can't be read from or written to the Hub."""


class ConfigError(IAIError):
    """A method name, configuration key or value is not known."""


def meant(given: str, known: Iterable[str]) -> str:
    """What a misspelt name may have been, for a message; empty where none of those that are known is near."""
    by_fold = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(given.casefold(), by_fold, n=1, cutoff=0.7)
    return f"; did you mean {by_fold[near[0]]!r}?" if near else ""
