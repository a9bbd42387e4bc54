"""Watched states: changes of a stream are noticed, told apart and gone on from, and where there are none nothing is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS, VOCABULARY, WORDS, examples, log_probs

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone
from iai_hf.changes import Change
from iai_hf.errors import ConfigError, StateError
from iai_hf.features.watch import Watch, forecasts
from iai_hf.features.watch.detectors import BETS, LOG_THRESHOLD, Evidence, ranked
from iai_hf.features.watch.scores import (
    CALM,
    bets_on_frequencies,
    bets_on_meaning,
    bets_on_texts,
    differences,
    surprises,
)

METHODS = ("iterative", "iterative-explicit", "iterative-implicit")
MOVED = {"sports": "music", "music": "food", "food": "sports"}
STEADY = 384  # examples before a change
Rows = list[dict[str, str]]


def made(method: str, backbone: Backbone, **config: Any) -> Amortizer:
    return AutoAmortizer.from_pretrained(method, backbone=backbone, config={"watch": True, "weights": None, **config})


def unwatched(state: TaskState) -> dict[str, torch.Tensor]:
    """Tensors of a state, but for the sample by which it states its error, which watched ones do not."""
    return {name: tensor for name, tensor in state.tensors.items() if not name.startswith("calibration.")}


def read(amortizer: Amortizer, rows: Rows, state: TaskState | None = None, size: int = 32) -> TaskState:
    state = state or amortizer.init_state(TaskSpec("classification", LABELS))
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        state = amortizer.update(
            state, Chunk(tuple(row["input"] for row in part), tuple(row["output"] for row in part))
        )
    return state


def renamed(rows: Rows) -> Rows:
    return [{**row, "output": MOVED[row["output"]]} for row in rows]


def accuracy(amortizer: Amortizer, state: TaskState, rows: Rows) -> float:
    found = amortizer.predict(state, [row["input"] for row in rows]).outputs
    return sum(one == row["output"] for one, row in zip(found, rows, strict=True)) / len(rows)


def likelihood(amortizer: Amortizer, state: TaskState, rows: Rows) -> float:
    """Mean log probability of what is right."""
    found = log_probs(amortizer.predict(state, [row["input"] for row in rows]))
    targets = torch.tensor([state.task.labels.index(row["output"]) for row in rows])
    return float(found.gather(1, targets[:, None]).mean())


def drawn(count: int, seed: int, often: str, times: int) -> Rows:
    """Examples of which a label has so many times as many as each other one."""
    return examples(count, seed, (often,) * times + tuple(label for label in LABELS if label != often))


@pytest.fixture(scope="module")
def steady(encoder: Backbone) -> tuple[Amortizer, TaskState]:
    amortizer = made("iterative", encoder)
    return amortizer, read(amortizer, examples(STEADY))


# The statistics.


def test_a_bet_on_a_rank_has_mean_one_over_all_members_of_a_bag() -> None:
    for scores in (torch.rand(37), torch.tensor([0.0] * 30 + [1.0] * 5 + [2.0]), torch.zeros(9)):
        above = torch.stack([(scores > own).sum() for own in scores])
        same = torch.stack([(scores == own).sum() - 1 for own in scores])
        mean = ranked(above, same, torch.full((len(scores),), len(scores) - 1)).mean(0)
        torch.testing.assert_close(mean, torch.ones(len(BETS), dtype=torch.float64))


def test_a_bet_on_frequencies_has_mean_one_over_all_members_of_a_bag() -> None:
    lately = torch.tensor([0] * 50 + [1] * 14)
    bag = torch.tensor([0] * 60 + [1] * 200 + [2] * 3)
    bets = []
    for place, own in enumerate(bag):
        others = torch.cat([bag[:place], bag[place + 1 :]])
        counts = torch.bincount(torch.cat([others, lately]), minlength=3)
        bets.append(bets_on_frequencies(counts, lately, own[None])[0])
    torch.testing.assert_close(torch.stack(bets).mean(0), torch.ones(3, dtype=torch.float64))
    assert float(bets[0].min()) > 1 > float(bets[100].max())  # the label that is frequent lately wins


def test_a_bet_on_texts_has_mean_one_over_all_members_of_a_bag() -> None:
    generator = torch.Generator().manual_seed(0)
    bag, lately = torch.randn(257, 16, generator=generator), torch.randn(64, 16, generator=generator) + 0.5
    sides = differences(torch.randn(3, 16, generator=generator))
    bets = [
        bets_on_texts(torch.cat([bag[:place], bag[place + 1 :]]), lately, bag[place : place + 1], sides)[0]
        for place in range(len(bag))
    ]
    torch.testing.assert_close(torch.stack(bets).mean(0), torch.ones(3, dtype=torch.float64))
    moved = bets_on_texts(bag[:256], lately, lately[:20], sides)
    assert float(moved[:, 0].mean()) > 1


def test_texts_that_differ_as_labels_do_are_no_other_texts() -> None:
    generator = torch.Generator().manual_seed(0)
    means = 3 * torch.randn(3, 16, generator=generator)

    def texts(labels: torch.Tensor) -> torch.Tensor:
        return means[labels] + torch.randn(len(labels), 16, generator=generator)

    earlier, lately = texts(torch.arange(256) % 3), texts(torch.zeros(64).long())
    bets = bets_on_texts(earlier, lately, texts(torch.zeros(500).long()), differences(means))
    assert bool((bets.log().mean(0) < 0.02).all())


def test_nothing_is_noticed_among_scores_that_do_not_change() -> None:
    generator = torch.Generator().manual_seed(0)
    evidence, histograms, counts = Evidence.none(), torch.zeros(4, 96), torch.zeros(4)
    of_labels, lately = Evidence.none(), torch.zeros(0, dtype=torch.long)
    for _ in range(400):
        logits = 2 * torch.randn(64, 4, generator=generator)
        noise = torch.rand(64, generator=generator) < 0.2
        targets = torch.where(noise, torch.randint(4, (64,), generator=generator), logits.argmax(1))
        bets, histograms = bets_on_meaning(histograms, surprises(logits.log_softmax(1), targets), targets)
        evidence, alarm = evidence.after(bets)
        of_labels, other = of_labels.after(bets_on_frequencies(counts, lately, targets))
        counts, lately = counts + torch.bincount(targets, minlength=4), torch.cat([lately, targets])[-64:]
        assert alarm is None
        assert other is None


def test_evidence_does_not_depend_on_how_a_stream_is_cut() -> None:
    bets = torch.rand(200, len(BETS), dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.6
    whole, _ = Evidence.none().after(bets[:60])
    parts, _ = Evidence.none().after(bets[:7])
    parts, _ = parts.after(bets[7:60])
    torch.testing.assert_close(whole.logs, parts.logs)
    assert torch.equal(whole.since, parts.since)
    _, alarm = Evidence.none().after(torch.full((40, len(BETS)), 2.0, dtype=torch.float64))
    assert alarm is not None
    assert alarm.place == int(LOG_THRESHOLD / torch.tensor(2.0).log())
    assert alarm.examples == alarm.place + 1


def test_an_honest_forecast_is_surprised_alike_whether_it_knows_much_or_little() -> None:
    generator = torch.Generator().manual_seed(0)
    for sharpness in (0.3, 3.0):
        given = (sharpness * torch.randn(20_000, 5, generator=generator)).log_softmax(1)
        labels = torch.multinomial(given.exp(), 1, generator=generator)[:, 0]
        assert float((surprises(given, labels) > 3).float().mean()) <= 0.05


def test_forecasts_follow_frequencies_where_that_proves_right_and_only_there() -> None:
    generator = torch.Generator().manual_seed(0)
    evidence = torch.randn(400, 3, generator=generator)  # of the texts alone
    log_probs = evidence.log_softmax(1)
    counts, since = torch.tensor([100.0, 100.0, 100.0]), torch.tensor([90.0, 5.0, 5.0])
    found = forecasts.reweighted(log_probs, since, counts)
    torch.testing.assert_close(found[0], log_probs)
    for prior, best in ((torch.tensor([0.9, 0.05, 0.05]), 2), (torch.ones(3) / 3, 0)):
        targets = torch.multinomial((log_probs + prior.log()).softmax(1), 1, generator=generator)[:, 0]
        gains = forecasts.gained(torch.zeros(3), found[:, :200], targets[:200])
        assert int(gains.argmax()) == best
        mixed = forecasts.mixed(found, gains)[200:].gather(1, targets[200:, None]).mean()
        assert float(mixed) >= float(found[best, 200:].gather(1, targets[200:, None]).mean()) - 0.01


def test_a_table_of_renamed_labels_is_learned_from_a_few_examples() -> None:
    generator = torch.Generator().manual_seed(0)
    before = 3 * torch.randn(40, 4, generator=generator)
    targets = (before.argmax(1) + 1) % 4
    moved = torch.zeros(4, 4)
    for first in range(0, 40, 8):
        moved = forecasts.moved_by(before[first : first + 8], moved, targets[first : first + 8])
    assert forecasts.renaming(moved).argmax(1).tolist() == [1, 2, 3, 0]
    torch.testing.assert_close(forecasts.renaming(moved).sum(1), torch.ones(4))
    found = forecasts.since_renamed(torch.zeros(40, 5), before, torch.nn.functional.pad(moved, (0, 1)))
    torch.testing.assert_close(found.exp().sum(2), torch.ones(5, 40))
    assert bool((found[1].argmax(1) == targets).float().mean() > 0.9)


# What a state makes of them.


@pytest.mark.parametrize("method", METHODS)
def test_until_something_changes_a_watched_state_is_as_one_that_is_not(method: str, encoder: Backbone) -> None:
    watched, plain = made(method, encoder), made(method, encoder, watch=False)
    rows = examples(400, 3)
    state, other = read(watched, rows), read(plain, rows)
    assert watched.changes(state) == []
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in unwatched(other).items())
    queries = [row["input"] for row in examples(20, 9)]
    assert torch.equal(log_probs(watched.predict(state, queries)), log_probs(plain.predict(other, queries)))


@pytest.mark.parametrize("sizes", [(4, 36, 3), (65, 3)])
def test_chunks_of_a_few_between_larger_ones_are_read_by_a_watched_state_as_by_another(
    sizes: tuple[int, ...], encoder: Backbone
) -> None:
    watched, plain = made("iterative", encoder), made("iterative", encoder, watch=False)
    rows, state, other = examples(sum(sizes)), None, None
    for size in sizes:
        part, rows = rows[:size], rows[size:]
        state, other = read(watched, part, state, size=size), read(plain, part, other, size=size)
    assert state is not None
    assert other is not None
    assert ("recent" in state.tensors) == ("recent" in other.tensors)
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in unwatched(other).items())


@pytest.mark.parametrize("size", [300, 512])
def test_a_large_chunk_is_read_by_a_watched_state_as_by_one_that_is_not(size: int, encoder: Backbone) -> None:
    watched, plain = made("iterative", encoder), made("iterative", encoder, watch=False)
    rows = examples(600, 3)
    state, other = read(watched, rows, size=size), read(plain, rows, size=size)
    assert watched.changes(state) == []
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in unwatched(other).items())


@pytest.mark.parametrize("size", [64, 256])
def test_a_second_change_is_noticed_in_the_chunk_of_the_first(size: int, encoder: Backbone) -> None:
    amortizer = made("iterative", encoder)
    swapped = {"sports": "music", "music": "sports", "food": "food"}
    later = [{**row, "output": swapped[row["output"]]} for row in examples(300, 8)]
    rows = examples(STEADY) + renamed(examples(300, 7)) + later
    first, second = amortizer.changes(read(amortizer, rows, size=size))
    assert (first.kind, second.kind) == ("meaning", "meaning")
    assert abs(first.began - STEADY) <= 32
    assert abs(second.began - STEADY - 300) <= 32


@pytest.mark.parametrize("method", METHODS)
def test_labels_that_mean_something_else_are_noticed_and_learned_anew(method: str, encoder: Backbone) -> None:
    amortizer, plain = made(method, encoder), made(method, encoder, watch=False)
    before, later, test = examples(STEADY), renamed(examples(64, 1)), renamed(examples(100, 9))
    state = read(amortizer, later, read(amortizer, before))
    (change,) = amortizer.changes(state)
    assert change.kind == "meaning"
    assert STEADY < change.noticed <= STEADY + 64
    assert abs(change.began - STEADY) <= 32
    ignorant = accuracy(plain, read(plain, later, read(plain, before)), test)
    assert accuracy(amortizer, state, test) > max(ignorant + 0.3, 0.6)
    again = read(amortizer, renamed(examples(500, 2)), state)
    assert amortizer.changes(again) == [change]
    assert accuracy(amortizer, again, test) > 0.8


def test_where_half_of_the_labels_change_the_others_stay_known(steady: tuple[Amortizer, TaskState]) -> None:
    amortizer, state = steady
    swapped = {"sports": "music", "music": "sports", "food": "food"}
    rows = [{**row, "output": swapped[row["output"]]} for row in examples(64, 1)]
    after = read(amortizer, rows, state)
    assert [change.kind for change in amortizer.changes(after)] == ["meaning"]
    food = [row for row in examples(120, 9) if row["output"] == "food"]
    assert accuracy(amortizer, after, food) > 0.8


@pytest.mark.parametrize("size", [1, 300])
def test_changes_are_noticed_in_chunks_of_any_size(size: int, steady: tuple[Amortizer, TaskState]) -> None:
    amortizer, state = steady
    rows = examples(50, 5) + renamed(examples(150, 1))
    (change,) = amortizer.changes(read(amortizer, rows, state, size))
    assert change.kind == "meaning"
    assert abs(change.began - STEADY - 50) <= 32


def test_other_frequencies_are_noticed_named_and_followed(steady: tuple[Amortizer, TaskState]) -> None:
    amortizer, state = steady
    after = read(amortizer, drawn(200, 1, "food", 8), state)
    change = amortizer.changes(after)[0]
    assert [one.kind for one in amortizer.changes(after)] == ["frequencies"]
    assert (change.label, change.grouped) == ("food", False)
    assert change.after is not None
    assert change.before is not None
    assert change.after > 0.6 > 0.45 > change.before
    assert "'food'" in str(change)
    kept = {name: tensor for name, tensor in after.tensors.items() if not name.startswith(("reweighted.", "watch."))}
    unmoved = TaskState(kept, after.header)
    asked = drawn(400, 9, "food", 8)
    assert (
        likelihood(amortizer, after, asked) > likelihood(amortizer, unmoved, asked) - 0.02
    )  # which follows too, later


def with_some(rows: Rows, share: float, seed: int) -> Rows:
    """The rows, a share of which has one of two labels that nothing tells apart."""
    drawn_by = random.Random(seed)

    def one() -> dict[str, str]:
        words = [drawn_by.choice(VOCABULARY[-6:]) for _ in range(9)]
        return {"input": " ".join(words), "output": drawn_by.choice(["one", "other"])}

    return [one() if drawn_by.random() < share else row for row in rows]


def test_labels_that_are_hard_to_tell_and_become_frequent_mean_what_they_did(encoder: Backbone) -> None:
    amortizer = made("iterative", encoder)
    rows = with_some(examples(600, 2), 0.1, 2) + with_some(examples(500, 52), 0.6, 3)
    changes = amortizer.changes(read(amortizer, rows))
    assert {change.kind for change in changes} == {"frequencies"}


def test_new_labels_that_are_hard_to_tell_change_no_meaning(steady: tuple[Amortizer, TaskState]) -> None:
    amortizer, state = steady
    changes = amortizer.changes(read(amortizer, with_some(examples(500, 51), 0.5, 1), state))
    assert changes[0].kind == "label"
    assert "meaning" not in [change.kind for change in changes]


def test_the_rounding_of_probabilities_is_no_surprise() -> None:
    targets = torch.zeros(300, dtype=torch.long)
    found = torch.cat([torch.zeros(200), torch.full((100,), 1e-6)])
    bets, _ = bets_on_meaning(torch.zeros(1, 96), found, targets)
    assert bool((bets <= 1 + 1e-9).all())


def test_data_sorted_by_label_are_told_so(encoder: Backbone) -> None:
    amortizer = made("iterative", encoder)
    rows = sorted(examples(900), key=lambda row: row["output"])
    changes = amortizer.changes(read(amortizer, rows))
    assert "meaning" not in [change.kind for change in changes]
    told = [str(change) for change in changes if change.kind == "frequencies"]
    assert told
    assert all("sorted or grouped by label" in one for one in told)


def test_other_texts_are_noticed_and_nothing_is_forgotten(steady: tuple[Amortizer, TaskState]) -> None:
    amortizer, state = steady
    rows = [{**row, "input": f"{row['input']} : of of the of a a"} for row in examples(200, 1)]
    after = read(amortizer, rows, state)
    assert [change.kind for change in amortizer.changes(after)] == ["texts"]
    assert accuracy(amortizer, after, examples(100, 9)) > 0.8


def test_a_new_label_is_told_as_such(steady: tuple[Amortizer, TaskState]) -> None:
    amortizer, state = steady
    rows = examples(64, 1)
    new = [
        {"input": " ".join(["salt", "song", "goal"] * 2 + [WORDS["food"][i % 8]]), "output": "all"} for i in range(8)
    ]
    changes = amortizer.changes(
        read(amortizer, [row for pair in zip(rows, new * 8, strict=True) for row in pair], state)
    )
    assert changes[0] == Change("label", STEADY + 2, STEADY + 2, "all")
    assert "meaning" not in [change.kind for change in changes]


@pytest.mark.parametrize("method", ["iterative", "iterative-implicit"])
def test_a_state_behind_a_change_is_resumed_exactly(method: str, encoder: Backbone, tmp_path: Path) -> None:
    amortizer = made(method, encoder)
    rows = examples(STEADY) + renamed(examples(96, 1)) + drawn(160, 3, "food", 8)
    options: dict[str, Any] = {"task": TaskSpec(labels=LABELS), "chunk_size": 32, "progress": False}
    whole = amortizer.adapt(rows, **options)
    amortizer.adapt(rows, max_examples=STEADY + 32, output=tmp_path, **options)
    resumed = amortizer.adapt(rows, TaskState.from_pretrained(tmp_path), resume=True, **options)
    assert amortizer.changes(whole)
    assert resumed.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(resumed.tensors[name], tensor) for name, tensor in whole.tensors.items())
    queries = [row["input"] for row in examples(8, 9)]
    restored = AutoAmortizer.for_state(resumed, encoder)
    assert torch.equal(log_probs(restored.predict(resumed, queries)), log_probs(amortizer.predict(whole, queries)))
    assert amortizer.predict(whole, queries[:1]).outputs == amortizer.predict(whole, queries).outputs[:1]


def test_a_state_stays_within_twice_its_size_however_often_labels_change(steady: tuple[Amortizer, TaskState]) -> None:
    amortizer, state = steady
    sizes = []
    for turn in range(3):
        rows = examples(300, turn)
        state = read(amortizer, renamed(rows) if turn % 2 == 0 else rows, state)
        sizes.append(state.nbytes)
    assert len(amortizer.changes(state)) == 3
    assert max(sizes) <= 2 * amortizer.init_state(TaskSpec("classification", LABELS)).nbytes
    assert accuracy(amortizer, state, renamed(examples(100, 9))) > 0.8


def test_changes_are_told_in_the_summary(steady: tuple[Amortizer, TaskState]) -> None:
    amortizer, state = steady
    assert type(amortizer).summary(state) == {"changes": "none noticed"}
    told = type(amortizer).summary(read(amortizer, renamed(examples(64, 1)), state))
    assert "labels mean something else" in told["change 1"]


# What goes together with what.


def test_states_that_noticed_nothing_merge_and_are_edited_as_others_are(encoder: Backbone) -> None:
    # A watched state keeps no sample by which a merge would catch up.
    amortizer, plain = made("iterative", encoder), made("iterative", encoder, watch=False, calibration_examples=0)
    parts = [examples(64, 1), examples(64, 2)]
    merged = amortizer.merge([read(amortizer, part) for part in parts])
    other = plain.merge([read(plain, part) for part in parts])
    assert all(torch.equal(merged.tensors[name], tensor) for name, tensor in unwatched(other).items())
    forgotten = amortizer.forget(merged, parts[0][:8])
    assert not forgotten.tensors["watch.features"].any()
    dropped = amortizer.drop_label(amortizer.rename_label(merged, "food", "cooking"), "sports")
    kept = [{**row, "output": {"food": "cooking"}.get(row["output"], row["output"])} for row in examples(600, 5)]
    kept = [row for row in kept if row["output"] != "sports"]
    later = kept[:250] + [row for row in kept if row["output"] == "music"]
    changes = amortizer.changes(read(amortizer, later, dropped))  # the watch goes on with the labels of now
    assert [(change.kind, change.label) for change in changes][:1] == [("frequencies", "music")]


def test_what_a_change_of_meaning_makes_ambiguous_is_refused(
    steady: tuple[Amortizer, TaskState], tmp_path: Path
) -> None:
    amortizer, state = steady
    rows = renamed(examples(64, 1))
    after = read(amortizer, rows, state)
    with pytest.raises(ConfigError, match="changed their meaning can't be merged"):
        amortizer.merge([after, read(amortizer, examples(32, 4))])
    with pytest.raises(ConfigError, match="changed their meaning can't be told to forget"):
        amortizer.forget(after, rows[:4])
    with pytest.raises(ConfigError, match="changed their meaning can't be edited"):
        amortizer.rename_label(after, "food", "cooking")
    with pytest.raises(ConfigError, match="no linear map"):
        amortizer.export(after, tmp_path / "out", "sentence-transformers")


def test_what_follows_other_frequencies_is_refused_rather_than_dropped(steady: tuple[Amortizer, TaskState]) -> None:
    amortizer, state = steady
    rows = drawn(200, 1, "food", 8)
    after = read(amortizer, rows, state)
    with pytest.raises(ConfigError, match=r"changed their frequencies.* can't be merged"):
        amortizer.merge([after, read(amortizer, examples(32, 4))])
    with pytest.raises(ConfigError, match=r"changed their frequencies.* can't be told to forget"):
        amortizer.forget(after, rows[:4])
    with pytest.raises(ConfigError, match=r"changed their frequencies.* can't be edited"):
        amortizer.rename_label(after, "food", "cooking")


def test_noted_changes_are_renamed_and_numbered_as_their_labels_and_examples_are(encoder: Backbone) -> None:
    amortizer = made("iterative", encoder)
    new = [{"input": "all of it", "output": "all"}] * 4
    state = read(amortizer, [*examples(STEADY), *new])
    assert amortizer.changes(state) == [Change("label", STEADY + 1, STEADY + 1, "all")]
    renamed_too = amortizer.rename_label(state, "all", "every")
    assert amortizer.changes(renamed_too) == [Change("label", STEADY + 1, STEADY + 1, "every")]
    merged = amortizer.merge([read(amortizer, examples(64, 4)), state])
    assert amortizer.changes(merged) == [Change("label", STEADY + 65, STEADY + 65, "all")]


def test_a_change_of_meaning_is_not_pushed_out_by_newer_changes() -> None:
    watch = Watch.none(4, 3).told(Change("meaning", 400, 390), LABELS)
    for number in range(500, 600):
        watch = watch.told(Change("texts", number, number), LABELS)
    told = watch.tell(LABELS)
    assert told[0] == Change("meaning", 400, 390)
    assert [change.noticed for change in told[1:]] == list(range(537, 600))


def test_settings_that_contradict_a_watch_are_refused(encoder: Backbone) -> None:
    with pytest.raises(ConfigError, match="half_life is 100"):
        made("iterative", encoder, half_life=100)
    with pytest.raises(ConfigError, match="depth is 1"):
        made("iterative", encoder, depth=1)
    with pytest.raises(ConfigError, match="watching a stream takes states whose texts have one label"):
        made("iterative", encoder).init_state(TaskSpec("multi-label", LABELS))
    with pytest.raises(ConfigError, match="watch"):
        AutoAmortizer.from_pretrained("numeric-parametric", config={"watch": True})


def test_changes_are_asked_of_watched_states_alone(encoder: Backbone) -> None:
    plain = made("iterative", encoder, watch=False)
    state = read(plain, examples(32))
    with pytest.raises(ConfigError, match="not watched"):
        plain.changes(state)
    with pytest.raises(StateError, match="watch=True"):
        made("iterative", encoder).update(state, Chunk(("ball",), ("sports",)))
    other = AutoAmortizer.from_pretrained("numeric-parametric")
    with pytest.raises(ConfigError, match="iterative-explicit"):
        other.changes(other.init_state(TaskSpec("classification", LABELS, ("a", "b"))))


def test_a_stream_of_a_few_examples_is_no_change(encoder: Backbone) -> None:
    amortizer = made("iterative", encoder)
    state = read(amortizer, examples(CALM), size=3)
    assert amortizer.changes(state) == []
    assert "takes 320 examples" in type(amortizer).summary(state)["changes"]
