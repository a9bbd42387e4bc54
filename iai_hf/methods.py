"""The methods: classes that any package, ours included, registers by an entry point under their names."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from iai_hf.errors import ConfigError, DataError, meant
from iai_hf.task import LABEL_LIMIT, MAX_LABELS, TaskSpec

GROUP = "iai_hf.amortizers"
OR_MORE_LABELS = (
    "; if nearly every row has its own, as an id, another column is the output; if they are that many classes, "
    f"max_labels, a setting of methods on features, allows for up to {LABEL_LIMIT}"
)


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
        raise ConfigError(
            f"no method or folder {method!r}; the methods are {', '.join(methods())}{meant(method, methods())}"
        )
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


def check_task(method: Any, task: TaskSpec) -> None:
    """Raise DataError where a method, by what it declares, can't answer a task, or the task has too many labels."""
    if method.reads == "texts" and task.columns:
        raise DataError(
            f"{method.method!r} reads texts, these inputs are numbers ({', '.join(task.columns[:3])}, ...); choose a "
            f"method that reads those ({those(lambda other: other.reads == 'numbers')}), or name a column of text"
        )
    if task.kind not in method.kinds:
        raise DataError(
            f"{method.method!r} answers {' and '.join(method.kinds)} tasks, not {task.kind}; choose a method that does "
            f"({those(lambda other: task.kind in other.kinds)}); if each text has one class after all, the kind is "
            f"classification (at most {MAX_LABELS})",
            options=("kind classification",),
        )
    most = getattr(method, "max_labels", MAX_LABELS)
    if len(task.labels) > most:
        raise DataError(
            f"the task has over {most} labels, the last one {task.labels[-1][:40]!r}; expected class names: "
            f"if the answers are free text, the kind is generation{OR_MORE_LABELS}",
            options=("kind generation",),
        )


def can_answer(task: TaskSpec) -> bool:
    """Whether enough labels are known for an answer: two, or one that may apply or not."""
    return len(task.labels) >= {"classification": 2, "multi-label": 1}.get(task.kind, 0)


def check_answerable(task: TaskSpec) -> None:
    """Raise DataError where too few labels are known for an answer."""
    if not can_answer(task):
        word = "two" if task.kind == "classification" else "one"
        raise DataError(
            f"the state knows {len(task.labels)} label(s) {list(task.labels)}; expected at least {word}: adapt on data "
            "with more classes, or name the labels ahead"
        )


def check_one_label(task: TaskSpec, what: str, instead: str) -> None:
    """Raise ConfigError where texts of a task have several labels, and `what` is of those with one; what to do then."""
    if task.kind == "multi-label":
        raise ConfigError(
            f"{what} takes states whose texts have one label each, and this one's have any number of them; {instead}"
        )


def check_takes_unlabelled(method: Any) -> None:
    """Raise ConfigError where rows without a label tell a method nothing, so that dropping them would go unseen."""
    if not method.takes_unlabelled:
        raise ConfigError(
            f"{method.method!r} can't take rows without a label (unlabelled ones, or queries that inform each other); "
            f"leave them out, or choose a method that takes them ({those(lambda other: other.takes_unlabelled)})"
        )


def check_watches(method: Any) -> None:
    """Raise ConfigError where a method can't notice that its stream changes."""
    if not method.watches:
        raise ConfigError(
            f"{method.method!r} notices no changes of its stream; leave watch out, or choose a method that does "
            f"({those(lambda other: other.watches)})"
        )
