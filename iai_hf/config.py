"""Configurations: dataclasses of plain values, read from JSON or the command line with every key checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from iai_hf.errors import ConfigError

T = TypeVar("T")


def read_config(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make the dataclass `cls` from plain values.

    Raises:
        ConfigError: an unknown key, or a value of another type; both are named.
    """
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"unknown configuration key {', '.join(unknown)}; {cls.__name__} has {', '.join(sorted(known))}"
        )
    hints = get_type_hints(cls)
    for key, value in values.items():
        allowed = get_args(hints[key]) or (hints[key],)
        fits = type(value) in allowed or (float in allowed and type(value) is int)
        if not fits:
            names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
            raise ConfigError(f"{cls.__name__}.{key} is {value!r}; expected {names}")
    return cls(**values)


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` where a value is out of range."""
    if not condition:
        raise ConfigError(message)
