"""Every public name says what it is: modules, classes, functions and methods (an override has its base's words)."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import iai_hf


def modules() -> Iterator[ModuleType]:
    yield iai_hf
    for found in pkgutil.walk_packages(iai_hf.__path__, "iai_hf."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def public(owner: Any, home: str) -> Iterator[tuple[str, Any]]:
    for name, value in vars(owner).items():
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and callable(value) and getattr(value, "__module__", home) == home:
            yield name, getattr(owner, name) if not isinstance(vars(owner)[name], property) else vars(owner)[name]


def test_every_public_name_has_a_docstring() -> None:
    missing = []
    for module in modules():
        assert module.__doc__, module.__name__
        for name, value in public(module, module.__name__):
            if inspect.isclass(value):
                missing += [
                    f"{module.__name__}.{name}.{inner}"
                    for inner, member in public(value, module.__name__)
                    if not inspect.getdoc(member)
                ]
            if not inspect.getdoc(value):
                missing.append(f"{module.__name__}.{name}")
    assert not missing, missing
