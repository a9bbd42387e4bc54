"""The part of the contract that answers queries, also with a stated error: sets of labels, and none of these.

At least the share `coverage` of the sets holds the right label, and at most the share `abstain` of the texts gets None,
where examples and queries are exchangeable, as if drawn from one source in no order. Of texts of another kind nothing
is promised; they are the ones that None is for. A text that gets None has no set: read as "any
label" it keeps the promise; `coverage` in an evaluation is that of the sets that were given.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from iai_hf import values
from iai_hf.errors import ConfigError, DataError, StateError
from iai_hf.methods import check_answerable, check_one_label, check_takes_unlabelled, those
from iai_hf.state import TaskState
from iai_hf.task import Prediction, TaskSpec
from iai_hf.threads import solving

if TYPE_CHECKING:
    import torch


class Answers(ABC):
    """The part of the contract that answers. A method that can state its error writes `answer_within`."""

    method: ClassVar[str]
    reads: ClassVar[str]
    _prepared: WeakKeyDictionary[TaskState, dict[str, Any]]

    # What a method is made of.

    def answer_within(
        self, state: TaskState, queries: Sequence[Any], coverage: float | None, abstain: float | None
    ) -> Prediction:
        """Answer the queries with sets of labels, and with None, as far as they are asked for; shares are checked."""
        raise NotImplementedError

    @abstractmethod
    def prepare(self, tensors: Mapping[str, torch.Tensor], task: TaskSpec) -> Any:
        """All that does not depend on the query."""

    @abstractmethod
    def answer(self, prepared: Any, task: TaskSpec, queries: Sequence[Any]) -> Prediction:
        """Answer from what `prepare` made."""

    @abstractmethod
    def absorb(
        self, tensors: Mapping[str, torch.Tensor], task: TaskSpec, inputs: Sequence[Any]
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, int]]:
        """New tensors after inputs without a label."""

    @abstractmethod
    def check(self, state: TaskState) -> None:
        """Raise StateError where the state is another amortizer's."""

    # The contract.

    @solving()
    def predict(
        self,
        state: TaskState,
        queries: Sequence[Any],
        *,
        transductive: bool = False,
        coverage: float | None = None,
        abstain: float | None = None,
    ) -> Prediction:
        """Answer queries.

        Args:
            transductive: let the queries inform each other, as unlabelled rows that are read for this answer alone.
            coverage: also give a set of labels a query, the answer in each, so that at least this share of the sets
                holds the right label, e.g. 0.9.
            abstain: answer None to a text unlike all that the state knows, at most to this share of those that are
                like it, e.g. 0.05.

        Raises:
            StateError: the state belongs to another method or backbone, or has too few examples for such a share.
            DataError: no query, an empty one, one longer than the context, fewer than two labels known, or a share that
                is not between 0 and 1.
            ConfigError: `transductive` of a method that can't take rows without a label; a share of a state that can't
                state its error.
        """
        self.check(state)
        self._check_shares(state.task, coverage, abstain, transductive)
        checked = self.checked_queries(queries, state.task)
        prepared = self.prepared(state)
        if transductive:
            check_takes_unlabelled(self)
            prepared = self.prepare(self.absorb(state.tensors, state.task, checked)[0], state.task)
        if coverage is not None or abstain is not None:
            return self.answer_within(state, checked, coverage, abstain)
        return self.answer(prepared, state.task, checked)

    @solving()
    def predict_each(self, states: Sequence[TaskState], queries: Sequence[Any]) -> list[Prediction]:
        """Answer `queries[i]` from `states[i]`, in one forward pass where the method can: a prediction a query.

        Raises:
            StateError, DataError: as `predict`; or as many states as queries were not given.
        """
        states = values.column(states, "states")
        for state in states:
            self.check(state)
        queries = self.checked_queries(queries, *(state.task for state in states))
        if len(states) != len(queries):
            raise DataError(f"got {len(states)} states for {len(queries)} queries; expected one for each")
        return self.answer_each([self.prepared(state) for state in states], [state.task for state in states], queries)

    def answer_each(
        self, prepared: Sequence[Any], tasks: Sequence[TaskSpec], queries: Sequence[Any]
    ) -> list[Prediction]:
        """Answer each query from what `prepare` made of its own state; here the queries of a state run together."""
        groups: dict[int, list[int]] = {}
        for i, made in enumerate(prepared):
            groups.setdefault(id(made), []).append(i)
        answers: dict[int, Prediction] = {}
        for group in groups.values():
            found = self.answer(prepared[group[0]], tasks[group[0]], [queries[i] for i in group])
            answers.update({i: found.row(place) for place, i in enumerate(group)})
        return [answers[i] for i in range(len(queries))]

    def prepared(self, state: TaskState) -> Any:
        """What `prepare` makes of a state, made once; the state is checked.

        Raises:
            StateError: the state belongs to another method or backbone.
            DataError: fewer than two labels are known.
        """
        self.check(state)
        check_answerable(state.task)
        return self.made(state, "answers", lambda: self.prepare(state.tensors, state.task))

    def made(self, state: TaskState, name: str, make: Callable[[], Any]) -> Any:
        """What `make` makes of a state, made once and kept while the state lives."""
        kept = self._prepared.setdefault(state, {})
        if name not in kept:
            kept[name] = make()
        return kept[name]

    def checked_queries(self, queries: Any, *tasks: TaskSpec) -> tuple[Any, ...]:
        """Queries of any column type as texts, or as rows of numbers; a table of numbers is read by the tasks' columns.

        Raises:
            DataError: a bare string, no query, or one that is no text or no row of finite numbers.
        """
        if self.reads == "texts":
            return values.texts(queries)
        columns = tasks[0].columns if len({task.columns for task in tasks}) == 1 else ()
        return values.rows(queries, columns)

    def _check_shares(self, task: TaskSpec, coverage: Any, abstain: Any, transductive: bool) -> None:
        for name, share in (("coverage", coverage), ("abstain", abstain)):
            if share is None:
                continue
            if isinstance(share, bool) or not isinstance(share, numbers.Real) or not 0 < float(share) < 1:
                raise DataError(f"{name} is {share!r}; expected a share between 0 and 1, e.g. 0.9 of cases or 0.05")
            if type(self).answer_within is Answers.answer_within:
                able = those(lambda method: method.answer_within is not Answers.answer_within)
                raise ConfigError(
                    f"{self.method!r} can't state the error of its answers; leave {name} out, or choose a method that "
                    f"can ({able})"
                )
            instead = {
                "coverage": "leave it out: each label has a probability of its own, above which to take it is for you",
                "abstain": "leave it out: a text to which no label applies is answered by an empty set",
            }
            check_one_label(task, name, instead[name])
            if transductive:
                raise ConfigError(
                    f"{name} is promised of queries that are answered each by itself; leave transductive out"
                )


def too_few(name: str, share: float, needed: int, scored: int, most: int) -> StateError:
    """The error of a state that has too few examples to promise a share, of `most` that it would keep."""
    mend = "adapt it on further examples, or ask for less"
    if needed > most:
        mend = f"no more than {most:,} are kept, so ask for less"
    return StateError(
        f"{name}={share:g} takes at least {needed:,} examples that the state can leave out, this one has {scored:,}; "
        + mend,
        options=(name,),
    )
