"""Configurations: dataclasses of plain values, read from JSON or the command line with every key checked."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from iai_hf.errors import ConfigError

T = TypeVar("T")
ABSENT = "absent"  # in a field's metadata: what the setting was before there was one


def read_config(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make the dataclass `cls` from plain values; a number of numpy's, as a grid search has them, is one.

    Raises:
        ConfigError: an unknown key, or a value of another type; both are named.
    """
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"unknown configuration key {', '.join(unknown)}; {cls.__name__} has {', '.join(sorted(known))}"
        )
    values = {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}
    hints = get_type_hints(cls)
    for key, value in values.items():
        allowed = get_args(hints[key]) or (hints[key],)
        fits = type(value) in allowed or (float in allowed and type(value) is int)
        if not fits:
            names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
            raise ConfigError(f"{cls.__name__}.{key} is {value!r}; expected {names}")
    return cls(**values)


def read_stored(cls: type[T], values: Mapping[str, Any]) -> T:
    """As `read_config`, of what was saved: settings that came later are what they were before there were any."""
    later = {field.name: field.metadata[ABSENT] for field in dataclasses.fields(cls) if ABSENT in field.metadata}  # type: ignore[arg-type]
    return read_config(cls, {**later, **values})


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` where a value is out of range."""
    if not condition:
        raise ConfigError(message)


def whole_number(name: str, value: Any, *, at_least: int) -> int:
    """A whole number of any type that has those, e.g. numpy's, as an int.

    Raises:
        ConfigError: it is none, or too small; `name` tells which.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < at_least:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least {at_least}")
    return number
