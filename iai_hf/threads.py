"""What may run at once in several threads.

Loading a model and seeding a draw change what all threads share: torch's default dtype, its random generator, how much
transformers says. Whoever does so is `alone` meanwhile. Any number of threads are `computing`, but one at a time on
each backbone (`one_at_a_time`), as its layers carry a state's weights for the length of a forward pass.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from iai_hf.errors import StateError

P = ParamSpec("P")
R = TypeVar("R")

_changed = threading.Condition()
_own = threading.local()  # depth: how often this thread is inside already
_inside = {"computing": 0, "alone": 0}  # threads; at most one of them alone


class Lock:
    """A lock that its owner may take again. A copy, in this process or another, is a lock of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


@contextmanager
def computing() -> Iterator[None]:
    """What computes with tensors: beside other threads that do, not beside one that is `alone`."""
    depth = getattr(_own, "depth", 0)
    if not depth:
        with _changed:
            _changed.wait_for(lambda: not _inside["alone"])
            _inside["computing"] += 1
    _own.depth = depth + 1
    try:
        yield
    finally:
        _own.depth = depth
        if not depth:
            _leave("computing")


@contextmanager
def solving() -> Iterator[None]:
    """As `computing`, with a state: a matrix that can't be factored is a StateError."""
    import torch

    with computing():
        try:
            yield
        except torch.linalg.LinAlgError as error:
            raise StateError(
                f"the state's equations can't be solved ({str(error).splitlines()[0]}); what was saved before stands: "
                "look for inputs that are out of all proportion, or load the backbone in float32"
            ) from error


@contextmanager
def alone() -> Iterator[None]:
    """What changes process-wide settings, and puts them back at its end: while nothing computes."""
    depth, was_alone = getattr(_own, "depth", 0), getattr(_own, "alone", False)
    if was_alone:
        yield
        return
    waited = False
    if depth:  # in the midst of an own computation, which rests meanwhile
        _leave("computing")
    try:
        with _changed:
            _changed.wait_for(lambda: not _inside["alone"])
            _inside["alone"], waited = 1, True  # from here on nobody begins to compute
            _changed.wait_for(lambda: not _inside["computing"])
        _own.depth, _own.alone = depth + 1, True
        yield
    finally:  # also where Ctrl-C ended the waiting
        _own.depth, _own.alone = depth, False
        with _changed:
            _inside["alone"] -= waited
            _inside["computing"] += bool(depth)
            _changed.notify_all()


def _leave(what: str) -> None:
    with _changed:
        _inside[what] -= 1
        _changed.notify_all()


class Locked(Protocol):
    """What has a lock."""

    lock: Lock


def one_at_a_time(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A method that computes and that one thread at a time runs on an object, which has a `lock`."""

    @wraps(method)
    def held(self: Locked, /, *arguments: P.args, **named: P.kwargs) -> R:
        with computing(), self.lock:
            return method(self, *arguments, **named)

    return held


class cached_pass(cached_property[R]):
    """A `cached_property` that is found by computing, one thread at a time on an object, which has a `lock`.

    The lock is taken first: up to Python 3.11 `cached_property` holds one of its own meanwhile, and a thread that
    computes may ask for the property.
    """

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        with computing(), instance.lock:
            return super().__get__(instance, owner)
