"""The methods: classes that any package, ours included, registers by an entry point under their names."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from iai_hf.errors import ConfigError

GROUP = "iai_hf.amortizers"


def methods() -> tuple[str, ...]:
    """Names of all registered methods."""
    return tuple(sorted(entry.name for entry in entry_points(group=GROUP)))


def registered(method: str) -> Any:
    """The subclass of `Amortizer` registered under a name.

    Raises:
        ConfigError: no such method.
    """
    found = [entry for entry in entry_points(group=GROUP) if entry.name == method]
    if not found:
        raise ConfigError(f"no method or folder {method!r}; the methods are {', '.join(methods())}")
    return found[0].load()


def those(fit: Callable[[Any], bool]) -> str:
    """Names of the methods whose classes fit, for a message."""
    fitting = []
    for method in methods():
        try:
            if fit(registered(method)):
                fitting.append(method)
        except ImportError:  # another package's, which is broken: it is not what the message is about
            continue
    return ", ".join(fitting) or "(none)"
