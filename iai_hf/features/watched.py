"""WatchedFeatures: states that notice where their stream changes, and go on from there (see `watch/`).

Until a change is noticed, a watched state answers as one that is not watched does: its head is the same, and what is
kept to watch stands beside it. After that

* labels that mean something else: a new head begins, with the examples since. The one before stays as it was, and what
  its labels are called now is learned (`watch/forecasts.py`). It goes when it is no longer of use;
* other frequencies: the head stays, and its answers follow the frequencies as far as that proves right;
* other texts: the head stays. Where labels of such texts turn out otherwise, that is a change of meaning, too.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from iai_hf.changes import Change
from iai_hf.edits import Edited
from iai_hf.errors import ConfigError
from iai_hf.features.editing import EditableFeatures
from iai_hf.features.frozen_features import Config, targets_of
from iai_hf.features.parts import as_part, part_of
from iai_hf.features.watch import KEPT, KINDS, PART, Watch, forecasts
from iai_hf.methods import check_one_label
from iai_hf.task import Chunk, Prediction, TaskSpec, Tensors

if TYPE_CHECKING:
    from iai_hf.state import TaskState

log = logging.getLogger(__name__)
WATCH, BEFORE, RENAMED, REWEIGHTED = "watch.", "before.", "renamed.", "reweighted."  # of tensors' names
OWN = (WATCH, BEFORE, RENAMED, REWEIGHTED)
PART_OF_CHUNK = 64  # examples at most that are watched before the next are asked for
LEAST = 32  # examples before a state's answers are listened to
FORGET = 10.0  # nats by which a new head is ahead when the one before goes
FORGET_AFTER = 1024  # examples since it began, at least
NEVER = -30.0  # log probability of a label that was not known


@dataclass(frozen=True, eq=False)
class Behind:
    """A state behind a change, prepared: its head, the one before where there is one, and how they are weighed."""

    head: Any
    before: Any
    tensors: Tensors


@dataclass(frozen=True, eq=False)
class Forecasts:
    """What a state would say of features: one forecast, and those that it is made of.

    Attributes:
        log_probs: `[n, C]`.
        renamed, reweighted: `[forecasts, n, C]`, where there are such.
        before: logits of the head before, `[n, C0]`, where there is one.
    """

    log_probs: torch.Tensor
    renamed: torch.Tensor | None = None
    reweighted: torch.Tensor | None = None
    before: torch.Tensor | None = None


class WatchedFeatures(EditableFeatures[Config]):
    """Base of those that can be watched."""

    watches = True

    @classmethod
    def summary(cls, state: TaskState) -> dict[str, str]:
        told = super().summary(state)
        if not state.header.config.get("watch"):
            return told
        changes = watch_of(state.tensors).tell(state.task.labels)
        noticed = {f"change {number}": str(change) for number, change in enumerate(changes, 1)}
        few = state.header.examples < KEPT
        none = f"none noticed, which takes {KEPT} examples and those since a change" if few else "none noticed"
        return {**told, **(noticed or {"changes": none})}

    def changes(self, state: TaskState) -> list[Change]:
        """As `Amortizer.changes`."""
        self.check(state)
        if not self.config.watch:
            raise ConfigError("the state is not watched, so it knows of no changes; adapt one with watch=True")
        return watch_of(state.tensors).tell(state.task.labels)

    def initial(self, task: TaskSpec) -> Tensors:
        """As `FrozenFeatures.initial`.

        Raises:
            ConfigError: it is to be watched, and texts have several labels.
        """
        if self.config.watch:
            instead = "leave watch out; half_life, e.g. 1000, forgets old examples as new ones come"
            check_one_label(task, "watching a stream", instead)
        return self._watched(super().initial(task), task)

    def refine(
        self, tensors: Tensors, task: TaskSpec, chunk: Chunk, examples: int
    ) -> tuple[Tensors, Mapping[str, int]]:
        if not self.config.watch:
            return super().refine(tensors, task, chunk, examples)
        features, cut = self.features(chunk.inputs)
        targets = targets_of(chunk, task)
        with torch.no_grad():
            read, done, begun, parts = tensors, 0, False, 0
            while done < len(chunk):
                part = slice(done, done + PART_OF_CHUNK)
                read, followed, anew = self._followed(read, task, features[part], targets[part], examples + done)
                done, begun, parts = done + followed, begun or anew, parts + 1
            if parts > 1 and not begun:  # the head reads a chunk whole, as one that is not watched does
                read = {**_beside(read), **self.absorbed(part_of("", tensors), task, features, targets)}
        return read, {"texts_cut": cut} if self.config.max_tokens else {}

    def _followed(
        self, tensors: Tensors, task: TaskSpec, features: torch.Tensor, targets: torch.Tensor, seen: int
    ) -> tuple[Tensors, int, bool]:
        """The tensors after examples `[n, d]` and `[n]`, behind `seen` others; up to an alarm, where there is one.

        Beside them the number of examples that were read, and whether a new head began.
        """
        plain, asked = part_of("", tensors), None
        known = targets < len(plain["counts"])  # of labels that came with this chunk nobody could know
        if seen >= LEAST and len(plain["counts"]) > 1:
            asked = self._forecasts(self._behind(tensors), features)
        before = watch_of(tensors).of_classes(len(task.labels))
        log_probs = None if asked is None else _widened(asked.log_probs, len(task.labels), NEVER)
        means = _means(part_of(BEFORE, tensors) if RENAMED + "moved" in tensors else plain)
        watch, alarms = before.after(log_probs, features, targets, means, seen)
        if alarms:  # what follows is watched with what is known behind the alarm
            last = alarms["meaning"] if "meaning" in alarms else min(alarms.values())
            if last.place + 1 < len(targets):
                return self._followed(tensors, task, features[: last.place + 1], targets[: last.place + 1], seen)
        read: Tensors = {**_beside(tensors), **self.absorbed(plain, task, features, targets)}
        if asked is not None:
            read = self._learned(read, asked, targets, known, len(task.labels))
        for label in watch.newcomers(before):
            number = int(watch.first[label])
            watch = _noticed(watch, Change("label", number, number, task.labels[label]), task)
        every = [torch.cat(both) for both in ((before.features.float(), features), (before.targets.long(), targets))]
        for kind, alarm in alarms.items():
            if kind == "frequencies" and "meaning" in alarms:
                continue  # they are of other labels now
            since = min(alarm.examples + len(targets) - 1 - alarm.place, len(every[1]))
            noticed = seen + alarm.place + 1
            change = Change(kind, noticed, max(noticed - alarm.examples + 1, 1))
            if kind == "frequencies":
                label, share, now = watch.frequency_change(since, before)
                change = replace(change, label=task.labels[label], before=share, after=now)
                read = self._reweighting(read, watch, since, change)
            if kind == "meaning":
                read = self._begun(tensors, read, task, *(some[-since:] for some in every))
            watch = _noticed(watch.restarted(kind, since), change, task)
        return {**read, **as_part(WATCH, watch.tensors)}, len(targets), "meaning" in alarms

    def _behind(self, tensors: Tensors, head: Any = None) -> Behind:
        """Of a state; its head is prepared already, or answers without unlabelled text."""
        before = self.head.prepare(part_of(BEFORE, tensors)) if RENAMED + "moved" in tensors else None
        return Behind(self.head.prepare(part_of("", tensors)) if head is None else head, before, tensors)

    def _forecasts(self, behind: Behind, features: torch.Tensor) -> Forecasts:
        """Of features `[n, d]`."""
        logits, tensors = self.head.logits(behind.head, features), behind.tensors
        log_probs, renamed, reweighted, before = logits.log_softmax(1), None, None, None
        if RENAMED + "moved" in tensors:
            before = self.head.logits(behind.before, features)
            moved = _widened(tensors[RENAMED + "moved"], logits.shape[1])
            renamed = forecasts.since_renamed(logits, before, moved)
            log_probs = forecasts.mixed(renamed, tensors[RENAMED + "gains"])
        if REWEIGHTED + "counts" in tensors:
            since = _widened(tensors[REWEIGHTED + "counts"], logits.shape[1])
            reweighted = forecasts.reweighted(log_probs, since, tensors["counts"])
            log_probs = forecasts.mixed(reweighted, tensors[REWEIGHTED + "gains"])
        return Forecasts(log_probs, renamed, reweighted, before)

    def _learned(
        self, tensors: Tensors, asked: Forecasts, targets: torch.Tensor, known: torch.Tensor, classes: int
    ) -> Tensors:
        """What the examples tell of forecasts that were asked before they were read."""
        read = dict(tensors)
        for prefix, found in ((RENAMED, asked.renamed), (REWEIGHTED, asked.reweighted)):
            if found is not None:
                read[prefix + "gains"] = forecasts.gained(read[prefix + "gains"], found[:, known], targets[known])
        if asked.reweighted is not None:
            counts = _widened(read[REWEIGHTED + "counts"], classes)
            read[REWEIGHTED + "counts"] = counts + torch.bincount(targets, minlength=classes)
        if asked.before is not None:
            moved = _widened(read[RENAMED + "moved"], classes)
            read[RENAMED + "moved"] = forecasts.moved_by(asked.before, moved, targets)
            gains = read[RENAMED + "gains"]
            if float(read["counts"].sum()) >= FORGET_AFTER and float(gains[0] - gains[1:].max()) >= FORGET:
                read = {name: tensor for name, tensor in read.items() if not name.startswith((BEFORE, RENAMED))}
        return read

    def _begun(
        self, before: Tensors, read: Tensors, task: TaskSpec, features: torch.Tensor, targets: torch.Tensor
    ) -> Tensors:
        """A state whose labels changed their meaning with these examples, `[n, d]` and `[n]`.

        The head before stays as it was before the chunk, in which the change was noticed; after another change, the
        one of both that had been more right.
        """
        kept = {name: tensor for name, tensor in read.items() if "." in name and not name.startswith(OWN)}
        old = part_of("", before)
        if RENAMED + "gains" in before and int(before[RENAMED + "gains"].argmax()) > 0:
            old = part_of(BEFORE, before)
        classes = len(task.labels)
        head = self._grown(self.head.initial(self.feature_size), task)
        head = {**head, "names": torch.zeros_like(head["names"])}
        begun: Tensors = {
            **kept,
            **as_part(BEFORE, {name: tensor.clone() for name, tensor in old.items()}),
            RENAMED + "moved": torch.zeros(len(old["counts"]), classes, dtype=torch.float32),
            RENAMED + "gains": torch.zeros(forecasts.FORECASTS, dtype=torch.float32),
        }
        for part in forecasts.in_parts(len(targets), PART):
            asked = self._forecasts(self._behind({**begun, **head}), features[part])
            everything = torch.ones_like(targets[part], dtype=torch.bool)
            head = self.absorbed(head, task, features[part], targets[part])
            begun = self._learned({**begun, **head}, asked, targets[part], everything, classes)
        return begun

    @staticmethod
    def _reweighting(tensors: Tensors, watch: Watch, since: int, change: Change) -> Tensors:
        """A state whose labels changed their frequencies so many examples ago."""
        if change.grouped:  # the next group of labels comes, too
            return {name: tensor for name, tensor in tensors.items() if not name.startswith(REWEIGHTED)}
        counts = torch.bincount(watch.targets[-since:].long(), minlength=len(watch.counts)).float()
        gains = torch.zeros(len(forecasts.EXPONENTS), dtype=torch.float32)
        return {**tensors, REWEIGHTED + "counts": counts, REWEIGHTED + "gains": gains}

    def prepare(self, tensors: Tensors, task: TaskSpec) -> Any:
        head = super().prepare(_without_own(tensors), task)
        if not changed(tensors):
            return head
        with torch.no_grad():
            return self._behind(tensors, head)

    def answer(self, prepared: Any, task: TaskSpec, queries: Sequence[str]) -> Prediction:
        if not isinstance(prepared, Behind):
            return super().answer(prepared, task, queries)
        features, _ = self.features(queries)
        with torch.no_grad():
            return Prediction.from_logits(self._forecasts(prepared, features).log_probs, task.labels)

    def combine(self, parts: Sequence[tuple[Tensors, TaskSpec]], task: TaskSpec) -> Tensors:
        """As `Amortizer.combine`; what is watched begins anew, and changes that were noticed stay noted.

        Raises:
            ConfigError: labels changed their meaning within a part, so that nobody knows what they mean in the others;
                or their frequencies, which answers follow since.
        """
        merged = super().combine([(_without_own(tensors), part) for tensors, part in parts], task)
        if not self.config.watch:
            return merged
        for tensors, _ in parts:
            check_same_meaning(tensors, "can't be merged with others, of which it is not known what labels mean there")
            check_same_frequencies(tensors, "can't be merged: how frequent labels are among the others is not known")
        changes, read = [], 0  # numbered as if the parts had been read one after another
        for tensors, part in parts:
            for change in watch_of(tensors).tell(part.labels):
                changes.append(replace(change, noticed=change.noticed + read, began=change.began + read))
            read += round(float(tensors["counts"].sum()))
        return self._watched(merged, task, changes)

    def forgotten(self, tensors: Tensors, task: TaskSpec, chunk: Chunk, examples: int, strict: bool) -> Edited:
        """As `EditableFeatures.forgotten`; of what is kept to watch nothing stays but the changes noticed so far.

        Raises:
            ConfigError: labels changed their meaning or their frequencies, so that what is left of an example depends
                on when it was read.
        """
        check_same_meaning(tensors, "can't be told to forget examples: it does not know which came before")
        check_same_frequencies(tensors, "can't be told to forget examples: it does not know which came before")
        edited = super().forgotten(_without_own(tensors), task, chunk, examples, strict)
        return self._watched_edit(edited, tensors, task, task, range(len(task.labels)))

    def regrouped(
        self, tensors: Tensors, before: TaskSpec, after: TaskSpec, places: Sequence[int | None], examples: int
    ) -> Edited:
        """As `EditableFeatures.regrouped`, and as `forgotten`."""
        check_same_meaning(tensors, "can't be edited: labels of before and since are not the same")
        check_same_frequencies(tensors, "can't be edited: answers would no longer follow them")
        edited = super().regrouped(_without_own(tensors), before, after, places, examples)
        return self._watched_edit(edited, tensors, before, after, places)

    def _watched_edit(
        self, edited: Edited, tensors: Tensors, before: TaskSpec, after: TaskSpec, places: Sequence[int | None]
    ) -> Edited:
        if not self.config.watch:
            return edited
        now = {label: place for label, place in zip(before.labels, places, strict=True) if place is not None}
        changes = [
            change if change.label is None else replace(change, label=after.labels[now[change.label]])
            for change in watch_of(tensors).tell(before.labels)
            if change.label is None or change.label in now
        ]
        return replace(edited, tensors=self._watched(edited.tensors, after, changes))

    def _watched(self, tensors: Tensors, task: TaskSpec, changes: Sequence[Change] = ()) -> Tensors:
        """The tensors with a watch that begins now, where there is to be one."""
        if not self.config.watch:
            return tensors
        watch = Watch.none(self.feature_size, len(task.labels))
        watch = replace(watch, first=(tensors["counts"] > 0).long())
        for change in changes:
            watch = watch.told(change, task.labels)
        return {**tensors, **as_part(WATCH, watch.tensors)}


def watch_of(tensors: Tensors) -> Watch:
    """Of a watched state."""
    return Watch.of(part_of(WATCH, tensors))


def check_same_meaning(tensors: Tensors, told: str) -> None:
    """Raise ConfigError where labels of a watched state changed their meaning; `told` is what it can't therefore."""
    if WATCH + "changes" in tensors and bool((tensors[WATCH + "changes"][:, 0] == KINDS.index("meaning")).any()):
        raise ConfigError(
            f"a state whose labels changed their meaning {told}; adapt one on the examples since the change instead"
        )


def check_same_frequencies(tensors: Tensors, told: str) -> None:
    """Raise ConfigError where a watched state's answers follow other frequencies; `told` is what it can't therefore."""
    if REWEIGHTED + "counts" in tensors:
        raise ConfigError(
            f"a state whose labels changed their frequencies, which its answers follow since, {told}; adapt one "
            "without watch, or on the examples since the change, instead"
        )


def _noticed(watch: Watch, change: Change, task: TaskSpec) -> Watch:
    log.log(logging.INFO if change.kind == "label" else logging.WARNING, "%s", change)
    return watch.told(change, task.labels)


def changed(tensors: Tensors) -> bool:
    """Whether more than the head answers."""
    return RENAMED + "moved" in tensors or REWEIGHTED + "counts" in tensors


def _without_own(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(OWN)}


def _beside(tensors: Tensors) -> Tensors:
    """Those that are not the head's own, which may have fewer after another chunk."""
    return {name: tensor for name, tensor in tensors.items() if "." in name}


def _widened(tensor: torch.Tensor, size: int, value: float = 0.0) -> torch.Tensor:
    """With a last dimension of so many, for new labels."""
    return torch.nn.functional.pad(tensor, (0, size - tensor.shape[-1]), value=value)


def _means(tensors: Tensors) -> torch.Tensor:
    """Mean texts of a head's classes, of those that have any, `[C, d]`."""
    counts = tensors["counts"]
    if "sums" in tensors:
        sums = tensors["sums"]
    else:
        features, targets = tensors["features"].float(), tensors["targets"].long()
        counts = torch.bincount(targets, minlength=len(counts)).float()
        sums = features.new_zeros(len(counts), features.shape[1]).index_add(0, targets, features)
    held = counts >= 1
    return sums[held] / counts[held][:, None]
