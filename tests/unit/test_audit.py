"""Audits: leaving one out is what not reading it would be, and labels that were changed are found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import LABELS, examples

from iai_hf import AutoAmortizer, Chunk, TaskSpec
from iai_hf.audit import DUPLICATE, LABEL, UNINFORMATIVE, audit, true_labels
from iai_hf.backbones import Backbone
from iai_hf.errors import ConfigError, DataError, StateError
from iai_hf.features.iterative import Iterative


def made(backbone: Backbone, **settings: Any) -> Iterative:
    config = {"weights": None, "adapter": None, **settings}
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=backbone, config=config)
    assert isinstance(amortizer, Iterative)
    return amortizer


def columns_of(rows: list[dict[str, str]]) -> tuple[list[str], list[str]]:
    return [row["input"] for row in rows], [row["output"] for row in rows]


def test_one_left_out_is_answered_as_by_a_state_that_never_read_it(encoder: Backbone) -> None:
    amortizer, rows = made(encoder, signal="data"), examples(40)
    inputs, outputs = columns_of(rows)
    state = amortizer.adapt(rows, progress=False)
    found = amortizer.leave_one_out(state, Chunk(tuple(inputs), tuple(outputs)))
    read = amortizer.predict(state, inputs).log_probs
    assert read is not None
    gaps, of_read = [], []
    for left in range(0, 40, 7):
        without = amortizer.adapt(rows[:left] + rows[left + 1 :], amortizer.init_state(state.task), progress=False)
        expected = amortizer.predict(without, [inputs[left]]).log_probs
        assert expected is not None
        gaps.append(float((found[left].exp() - expected[0].exp()).abs().max()))
        of_read.append(float((read[left].exp() - expected[0].exp()).abs().max()))
    assert max(gaps) < 0.05
    assert sum(gaps) < 0.5 * sum(of_read)


@pytest.mark.parametrize("kind", [list, tuple, set])
def test_a_list_for_a_label_is_refused(encoder: Backbone, kind: Any) -> None:
    amortizer = made(encoder)
    inputs, outputs = columns_of(rows := examples(24))
    state = amortizer.adapt(rows, progress=False)
    with pytest.raises(DataError, match="example 0 has a list of labels"):
        audit(amortizer, state, inputs, [kind([output]) for output in outputs])


def test_changed_labels_come_first(encoder: Backbone) -> None:
    rows = examples(160)
    changed = range(0, 160, 20)
    for row in changed:
        rows[row]["output"] = LABELS[(LABELS.index(rows[row]["output"]) + 1) % len(LABELS)]
    amortizer = made(encoder)
    found = audit(amortizer, amortizer.adapt(rows, progress=False), *columns_of(rows))
    first = [finding.row for finding in found.findings[: len(changed)]]
    assert len(set(first) & set(changed)) >= 5  # of 8, where chance has 0.4
    assert [finding.wrong for finding in found.findings] == sorted((f.wrong for f in found.findings), reverse=True)
    assert sorted(finding.row for finding in found.findings) == list(range(160))
    for finding in found.findings:
        assert (LABEL in finding.issues) == (finding.wrong > 0.5)
    assert all(abs(sum(row) - 1) < 1e-4 for row in found.matrix)


def test_texts_with_two_labels_and_without_a_signal_are_told(encoder: Backbone) -> None:
    rows = examples(60)
    rows += [{"input": "Ball  team", "output": "sports"}, {"input": "ball team", "output": "food"}]
    rows += [{"input": "song", "output": "music"}, {"input": "song", "output": "music"}]
    amortizer = made(encoder)
    found = {f.row: f for f in audit(amortizer, amortizer.adapt(rows, progress=False), *columns_of(rows)).findings}
    assert found[60].duplicates == (61,)
    assert DUPLICATE in found[60].issues
    assert DUPLICATE in found[61].issues
    assert found[62].duplicates == (63,)
    assert DUPLICATE not in found[62].issues  # the labels agree
    assert {row for row, finding in found.items() if UNINFORMATIVE in finding.issues} == {
        row for row, finding in found.items() if finding.signal < 0.02
    }


def test_labels_that_are_mistaken_for_one_another_are_suspected_more() -> None:
    """Where one label is often written for another, a text between these is likelier wrong than one beside a third."""
    given = torch.tensor([0] * 20 + [1] * 20 + [2] * 20)
    probs = torch.full((60, 3), 0.02)
    probs[torch.arange(60), given] = 0.96
    probs[:6] = torch.tensor([0.05, 0.90, 0.05])  # of label 0, and likelier 1
    probs[6] = torch.tensor([0.40, 0.55, 0.05])
    probs[7] = torch.tensor([0.40, 0.05, 0.55])
    wrong = 1 - true_labels(probs.log(), given).gather(1, given[:, None])[:, 0]
    assert wrong[6] > wrong[7] + 0.05
    assert wrong[:6].min() > wrong[8:].max()


def test_what_can_not_be_audited_is_refused(encoder: Backbone) -> None:
    rows = examples(24)
    amortizer = made(encoder)
    state = amortizer.adapt(rows, progress=False)
    with pytest.raises(DataError, match="weather"):
        audit(amortizer, state, ["rain"], ["weather"])
    with pytest.raises(StateError, match="adapt it on these data first"):
        audit(amortizer, state, *columns_of(rows * 2))
    flipped = [{**row, "output": rows[(i + 1) % 24]["output"]} for i, row in enumerate(rows)]
    with pytest.raises(StateError, match="can't have read all of these examples with these labels"):
        audit(amortizer, state, *columns_of(flipped))
    other = AutoAmortizer.from_pretrained("iterative-explicit", backbone=encoder)
    with pytest.raises(ConfigError, match=r"'iterative-explicit' can't tell .* \(iterative\)"):
        audit(other, other.adapt(rows, progress=False), *columns_of(rows))
    forgets = made(encoder, half_life=10)
    with pytest.raises(ConfigError, match="half_life"):
        audit(forgets, forgets.adapt(rows, progress=False), *columns_of(rows))


def sets(count: int) -> list[dict[str, Any]]:
    """Texts about one or two things each, with both as labels."""
    first, second = examples(count), examples(count, seed=1)
    rows = []
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        both = [one["output"]] if i % 2 else list(dict.fromkeys([one["output"], other["output"]]))
        rows.append({"input": one["input"] if i % 2 else f"{one['input']} {other['input']}", "output": both})
    return rows


def test_of_several_labels_one_left_out_is_answered_as_if_it_had_not_been_read(encoder: Backbone) -> None:
    amortizer, rows = made(encoder, signal="data"), sets(40)
    task = TaskSpec("multi-label", LABELS)
    state = amortizer.adapt(rows, task=task, progress=False)
    chunk = Chunk(tuple(row["input"] for row in rows), tuple(row["output"] for row in rows))
    found, read = amortizer.leave_one_out(state, chunk).sigmoid(), amortizer.predict(state, chunk.inputs).probabilities
    assert read is not None
    gaps, of_read = [], []
    for left in range(0, 40, 7):
        without = amortizer.adapt(rows[:left] + rows[left + 1 :], task=task, progress=False)
        expected = amortizer.predict(without, [chunk.inputs[left]]).probabilities
        assert expected is not None
        gaps.append(float((found[left] - expected[0]).abs().max()))
        of_read.append(float((read[left] - expected[0]).abs().max()))
    assert max(gaps) < 0.05
    assert sum(gaps) < 0.5 * sum(of_read)


def test_sets_that_miss_a_label_or_have_one_too_many_come_first(encoder: Backbone) -> None:
    amortizer, rows = made(encoder), sets(240)
    changed = range(1, 240, 24)
    for row in changed:  # one too many, or another in its place
        own = rows[row]["output"][0]
        others = [label for label in LABELS if label != own]
        rows[row]["output"] = [own, others[0]] if row % 48 == 1 else others[:1]
    state = amortizer.adapt(rows, progress=False)
    found = audit(amortizer, state, [row["input"] for row in rows], [row["output"] for row in rows])
    first = [finding.row for finding in found.findings[:20]]
    assert len(set(first).intersection(changed)) >= 6
    assert all(isinstance(finding.suggestion, tuple) for finding in found.findings)
    assert found.labels == state.task.labels
    assert [row for row in found.findings if row.wrong < 0 or row.wrong > 1] == []
    sound = [finding for finding in found.findings if finding.row not in changed]
    right = sum(set(finding.suggestion) == set(finding.output) for finding in sound)
    assert right > 0.6 * len(sound)


def test_one_text_with_two_sets_is_told_and_the_order_of_labels_is_not(encoder: Backbone) -> None:
    amortizer, rows = made(encoder), sets(40)
    rows[20] = {"input": rows[0]["input"].upper(), "output": rows[0]["output"][::-1]}
    rows[22] = {"input": rows[1]["input"], "output": [label for label in LABELS if label not in rows[1]["output"]]}
    state = amortizer.adapt(rows, progress=False)
    found = audit(amortizer, state, [row["input"] for row in rows], [row["output"] for row in rows])
    of = {finding.row: finding for finding in found.findings}
    assert (of[0].duplicates, DUPLICATE in of[0].issues) == ((20,), False)
    assert (of[22].duplicates, DUPLICATE in of[22].issues) == ((1,), True)
    for outputs, error in (
        (["sports"] * 40, DataError),
        ([["nothing known"]] * 40, DataError),
        ([list(LABELS)] * 40, StateError),
        ([[], *(row["output"] for row in rows)], StateError),
    ):
        with pytest.raises(error):
            audit(amortizer, state, [rows[0]["input"]] * len(outputs), outputs)
