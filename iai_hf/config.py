"""Configurations: dataclasses of plain values, read from JSON or the command line with every key checked."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
from collections.abc import Collection, Mapping
from types import UnionType
from typing import Any, ClassVar, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from iai_hf.errors import ConfigError, meant


class Settings(Protocol):
    """Any configuration: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


T = TypeVar("T", bound=Settings)
# In a field's metadata: what the setting was before there was one, and what it was called when it was first saved.
ABSENT, FORMER = "absent", "former"
APART = {"apart": True}  # a field's metadata, in a class or its base: learned weights do not depend on the setting
WORDS: Mapping[str, Any] = {"none": None, "null": None, "true": True, "yes": True, "false": False, "no": False}


class Written(str):
    """A value as a person wrote it, e.g. on a command line; the type of its setting tells what is meant."""

    def read(self, allowed: Collection[type]) -> Any:
        """The value of the first type that fits: None, a truth value, a number, a list, else the text itself."""
        text = self.strip()
        if text.lower() in WORDS and type(WORDS[text.lower()]) in allowed:
            return WORDS[text.lower()]
        if int in allowed or float in allowed:
            try:
                number = float(text)
                return int(number) if int in allowed and number.is_integer() else number
            except ValueError:
                pass
        try:
            found = json.loads(text)
        except ValueError:
            found = text.split(",") if list in allowed else str(self)
        return found if type(found) in allowed else str(self)


def read_config(cls: type[T], values: Mapping[str, Any]) -> T:
    """Make the dataclass `cls` from plain values; a number of numpy's, as a grid search has them, is one.

    Raises:
        ConfigError: an unknown key, or a value of another type; both are named.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        renamed = [f"{old} is now {new}" for new, old in _former_names(cls).items() if old in unknown]
        raise ConfigError(
            f"unknown configuration key {', '.join(unknown)}; {cls.__name__} has {', '.join(sorted(known))}"
            + meant(unknown[0], known)
            + "".join(f" ({change})" for change in renamed)
        )
    made = plain(cls, values)
    for key, value in made.items():
        allowed = _types(cls, key)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{cls.__name__}.{key} is {value}; expected a finite number")
        fits = type(value) in allowed or (float in allowed and type(value) is int)
        if not fits:
            names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
            raise ConfigError(f"{cls.__name__}.{key} is {value!r}; expected {names}")
    return cls(**made)


def plain(cls: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for `cls` as plain ones: what is written, read by the type of its setting, and numpy's numbers."""
    made = {}
    for key, value in values.items():
        if isinstance(value, Written):
            value = value.read(_types(cls, key))
        made[key] = value.item() if hasattr(value, "item") else value
    return made


def _types(cls: type[Settings], key: str) -> tuple[type, ...]:
    """The types that a setting may have; none where there is no such setting."""
    hint = get_type_hints(cls).get(key)
    if hint is None:
        return ()
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    # list of list[str], str of a Literal of texts
    return tuple(str if get_origin(kind) is Literal else get_origin(kind) or kind for kind in kinds)


def read_stored(cls: type[T], values: Mapping[str, Any]) -> T:
    """As `read_config`, of what was saved: former names count, and what came later is as it was before it came."""
    later = {field.name: field.metadata[ABSENT] for field in dataclasses.fields(cls) if ABSENT in field.metadata}
    return read_config(cls, {**later, **current_names(cls, values)})


def renamed(default: Any, former: str) -> Any:
    """A setting's field: states that were saved earlier call it `former`, and digests of settings always do."""
    return dataclasses.field(default=default, metadata={FORMER: former})


def current_names(cls: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by their names of today; where both are given, today's counts."""
    current = {old: new for new, old in _former_names(cls).items()}
    return {current[key]: value for key, value in values.items() if key in current} | {
        key: value for key, value in values.items() if key not in current
    }


def first_names(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the names under which they were first saved, so that their digest is the same for ever.

    Those that came later are left out where they are as it was before.
    """
    former = _former_names(cls)
    later = {field.name: field.metadata[ABSENT] for field in dataclasses.fields(cls) if ABSENT in field.metadata}
    return {former.get(key, key): value for key, value in values.items() if key not in later or value != later[key]}


def _former_names(cls: type[Settings]) -> dict[str, str]:
    """First names of renamed settings, by their names of today."""
    return {field.name: field.metadata[FORMER] for field in dataclasses.fields(cls) if FORMER in field.metadata}


def apart(cls: type[Settings]) -> frozenset[str]:
    """Settings of a configuration that learned weights do not depend on."""
    bases = [base for base in cls.__mro__ if dataclasses.is_dataclass(base)]
    return frozenset(
        field.name for base in bases for field in dataclasses.fields(base) if APART.items() <= field.metadata.items()
    )


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
