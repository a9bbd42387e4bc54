"""Watch: what a state keeps to notice changes of its stream, and the changes that were noticed.

Its size is bounded: the newest examples' features (`KEPT`), histograms and counts of the labels, the newest changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

import torch

from iai_hf.changes import Change, Kind
from iai_hf.features.heads.head import grown
from iai_hf.features.watch.detectors import BETS, Alarm, Evidence
from iai_hf.features.watch.forecasts import in_parts
from iai_hf.features.watch.scores import (
    BINS,
    CALM,
    KEPT,
    LATELY,
    bets_on_frequencies,
    bets_on_meaning,
    bets_on_texts,
    differences,
    surprises,
)
from iai_hf.task import Tensors

KINDS: tuple[Kind, ...] = get_args(Kind)
DETECTED = KINDS[:3]
TOLD = 64  # newest changes that are kept
PART = 16  # examples for which what came lately is the same
NO_LABEL = -1
PERMILLE = 1000


@dataclass(frozen=True, eq=False)
class Watch:
    """Part of a state.

    Attributes:
        features: of the newest examples, float16 `[kept, d]`, kept being at most `KEPT`.
        targets: theirs, int16 `[kept]`.
        counts: of labels since their frequencies last changed, float32 `[C]`.
        first: number of each label's first example, int64 `[C]`, 0 of those that have none.
        histograms: of how surprising each label was since they last changed their meaning, float32 `[C, BINS]`.
        logs, since: evidence for a change of each kind (`Evidence`), float32 `[3, B]`.
        changes: the newest ones, int64 `[changes, 6]`: kind, noticed, began, label, shares (permille).
    """

    features: torch.Tensor
    targets: torch.Tensor
    counts: torch.Tensor
    first: torch.Tensor
    histograms: torch.Tensor
    logs: torch.Tensor
    since: torch.Tensor
    changes: torch.Tensor

    @classmethod
    def none(cls, size: int, classes: int) -> Watch:
        """Before any example, of features of a size."""
        return cls(
            features=torch.zeros(0, size, dtype=torch.float16),
            targets=torch.zeros(0, dtype=torch.int16),
            counts=torch.zeros(classes, dtype=torch.float32),
            first=torch.zeros(classes, dtype=torch.int64),
            histograms=torch.zeros(classes, BINS, dtype=torch.float32),
            logs=torch.zeros(len(DETECTED), len(BETS), dtype=torch.float32),
            since=torch.zeros(len(DETECTED), len(BETS), dtype=torch.float32),
            changes=torch.zeros(0, 6, dtype=torch.int64),
        )

    @property
    def tensors(self) -> Tensors:
        """As a state keeps them: with rows for all examples that are going to be kept, so that it never grows."""
        room = KEPT - len(self.targets)
        pad = torch.nn.functional.pad
        features, targets = pad(self.features, (0, 0, room, 0)), pad(self.targets, (room, 0), value=NO_LABEL)
        return vars(replace(self, features=features, targets=targets))

    @classmethod
    def of(cls, tensors: Tensors) -> Watch:
        """From what a state keeps."""
        watch = cls(**tensors)
        kept = watch.targets != NO_LABEL
        return replace(watch, features=watch.features[kept], targets=watch.targets[kept])

    def of_classes(self, classes: int) -> Watch:
        """The same with new labels, last."""
        new = classes - len(self.counts)
        names = ("counts", "first", "histograms")
        return replace(self, **{name: grown(getattr(self, name), new) for name in names}) if new else self

    def after(
        self,
        log_probs: torch.Tensor | None,
        features: torch.Tensor,
        targets: torch.Tensor,
        means: torch.Tensor,
        seen: int,
    ) -> tuple[Watch, Mapping[Kind, Alarm]]:
        """Behind a chunk, with the alarms in it; what follows from them is for `restarted`.

        Args:
            log_probs: what the state said of the chunk before it read it, `[n, C]`; None where it could say nothing.
            features, targets: of the chunk, `[n, d]`, `[n]`.
            means: texts' means by label, `[C, d]`.
            seen: examples before the chunk.
        """
        found: dict[Kind, torch.Tensor] = {}
        histograms = self.histograms
        if log_probs is not None:
            known = self._familiar(targets, seen)
            own = targets[known]
            found["meaning"], histograms = bets_on_meaning(histograms, surprises(log_probs[known], own), own)
        lately = self.targets[-LATELY:].long()
        found["frequencies"] = bets_on_frequencies(
            self.counts, lately[-int(self.counts.sum()) or len(lately) :], targets
        )
        kept, parts, sides = self.features.float(), [], differences(means)
        for part in in_parts(len(targets), PART):
            parts.append(bets_on_texts(kept[:-LATELY], kept[-LATELY:], features[part], sides))
            kept = torch.cat([kept, features[part]])[-KEPT:]
        found["texts"] = torch.cat(parts)
        logs, since, alarms = self.logs.clone(), self.since.clone(), {}
        for row, kind in enumerate(DETECTED):
            if kind in found:
                evidence, alarm = Evidence(logs[row], since[row]).after(found[kind])
                logs[row], since[row] = evidence.logs, evidence.since
                if alarm is not None:
                    alarms[kind] = alarm
        if "meaning" in alarms:  # places among all examples, not only the familiar ones
            place = int(known.nonzero()[alarms["meaning"].place])
            alarms["meaning"] = Alarm(place, alarms["meaning"].examples)
        numbers = torch.arange(seen + 1, seen + 1 + len(targets))
        first = torch.full_like(self.first, seen + len(targets) + 1).scatter_reduce(0, targets, numbers, "amin")
        first = torch.where((self.first == 0) & (first <= seen + len(targets)), first, self.first)
        counts = self.counts + torch.bincount(targets, minlength=len(self.counts))
        every = torch.cat([self.targets, targets.to(torch.int16)])[-KEPT:]
        watch = replace(self, features=kept.to(torch.float16), targets=every, counts=counts, first=first)
        return replace(watch, histograms=histograms, logs=logs, since=since), alarms

    def _familiar(self, targets: torch.Tensor, seen: int) -> torch.Tensor:
        """Which examples `[n]` have a label that is no longer new: what is surprising of those is not their meaning."""
        first = self.first[targets]
        return (first > 0) & ((first <= CALM) | (seen - first >= CALM))

    def newcomers(self, before: Watch) -> list[int]:
        """Labels whose first example came since `before`, long after the first of any other."""
        latest = int(before.first.max()) if len(before.first) else 0
        new = sorted((int(number), label) for label, number in enumerate(self.first.tolist()) if number > latest)
        gone = [number for number, _ in new]
        return [
            label
            for (number, label), previous in zip(new, [latest, *gone], strict=False)
            if latest and number - previous >= 2 * CALM
        ]

    def frequency_change(self, examples: int, before: Watch) -> tuple[int, float, float]:
        """The label whose share differs most between the newest examples since a change and all counted earlier."""
        classes = len(self.counts)
        newest = self.targets[-min(examples, LATELY) :].long()
        now = torch.bincount(newest, minlength=classes) / max(len(newest), 1)
        earlier = self.counts - torch.bincount(self.targets[-examples:].long(), minlength=classes)
        earlier = earlier.clamp(min=0) if float(earlier.clamp(min=0).sum()) else before.counts
        share = earlier / earlier.sum().clamp(min=1)
        label = int((now - share).abs().argmax())
        return label, float(share[label]), float(now[label])

    def restarted(self, kind: Kind, examples: int) -> Watch:
        """After an alarm: what is compared with from now on is the `examples` that came since the change.

        Texts do not depend on what labels mean: if they are of another kind too, that is still to be noticed.
        """
        watch, kept = self, max(min(examples, len(self.targets)), 1)
        logs, begun = self.logs.clone(), self.since.clone()
        for row, detected in enumerate(DETECTED):
            if detected == kind or (kind == "meaning" and detected == "frequencies"):
                logs[row], begun[row] = 0, 0
        if kind == "texts":
            watch = replace(watch, features=self.features[-kept:], targets=self.targets[-kept:])
        else:
            counts = torch.bincount(self.targets[-kept:].long(), minlength=len(self.counts)).to(self.counts)
            watch = replace(watch, counts=counts)
        if kind == "meaning":
            watch = replace(watch, histograms=torch.zeros_like(self.histograms))
        return replace(watch, logs=logs, since=begun)

    def told(self, change: Change, labels: tuple[str, ...]) -> Watch:
        """With a change."""
        label = NO_LABEL if change.label is None else labels.index(change.label)
        shares = [NO_LABEL if share is None else round(share * PERMILLE) for share in (change.before, change.after)]
        row = [KINDS.index(change.kind), change.noticed, change.began, label, *shares]
        changes = torch.cat([self.changes, torch.tensor([row], dtype=torch.int64)])
        if len(changes) > TOLD:  # a change of meaning is never pushed out by others: much is refused behind one
            oldest = int((changes[:, 0] != KINDS.index("meaning")).int()[:-1].argmax())
            changes = torch.cat([changes[:oldest], changes[oldest + 1 :]])
        return replace(self, changes=changes)

    def tell(self, labels: tuple[str, ...]) -> list[Change]:
        """The changes, the newest last."""
        return [
            Change(
                KINDS[kind],
                noticed,
                began,
                None if label == NO_LABEL else labels[label],
                None if before == NO_LABEL else before / PERMILLE,
                None if after == NO_LABEL else after / PERMILLE,
            )
            for kind, noticed, began, label, before, after in self.changes.tolist()
        ]
