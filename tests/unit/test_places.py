"""Where backbone and weights of a state are: told so that it travels, and refused where others are found."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub.constants
import pytest
import torch
from conftest import examples

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState, restore
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.card import amortizer_card, state_card
from iai_hf.errors import BackboneError, ConfigError, StateError

QUERIES = [row["input"] for row in examples(5, seed=3)]


def trained(encoder: Backbone, folder: Path, by: float = 0.3) -> Path:
    """A folder of an amortizer whose weights are not at their initial value."""
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    for parameter in amortizer.module.parameters():  # type: ignore[attr-defined]
        parameter.data += by
    amortizer.__dict__.pop("fingerprint", None)
    return amortizer.save_pretrained(folder)


@pytest.fixture
def mine(encoder: Backbone, tmp_path: Path) -> Path:
    return trained(encoder, tmp_path / "runs" / "mine")


@pytest.fixture
def amortizer(encoder: Backbone, mine: Path) -> Amortizer:
    return AutoAmortizer.from_pretrained(mine, backbone=encoder)


def test_a_state_of_ones_own_weights_goes_elsewhere(amortizer: Amortizer, encoder: Backbone, mine: Path) -> None:
    state = amortizer.adapt(examples(30), progress=False)
    answers = amortizer.predict(state, QUERIES).log_probs
    again = AutoAmortizer.for_state(state, encoder)  # here they are found by themselves
    assert torch.equal(again.predict(state, QUERIES).log_probs, answers)  # type: ignore[arg-type]
    moved = mine.rename(mine.parent.parent / "moved")
    published = state.published()
    for content in published.contents().values():
        assert str(mine.parent).encode() not in content
        assert encoder.name.encode() not in content
    with pytest.raises(ConfigError, match=r"no weights .* say where they are now") as refused:
        AutoAmortizer.for_state(published, encoder)
    assert refused.value.options == ("weights",)
    elsewhere = AutoAmortizer.for_state(published, encoder, weights=str(moved))
    assert torch.equal(elsewhere.predict(published, QUERIES).log_probs, answers)  # type: ignore[arg-type]
    assert published.predict(QUERIES, backbone=encoder, weights=str(moved)).outputs


def test_other_weights_are_refused_by_their_digests(amortizer: Amortizer, encoder: Backbone, tmp_path: Path) -> None:
    state = amortizer.adapt(examples(30), progress=False)
    other = AutoAmortizer.from_pretrained(trained(encoder, tmp_path / "other", 0.2), backbone=encoder)
    assert state.header.weights_digest != other.weights_digest
    digests = f"{str(state.header.weights_digest)[:8]}.*{str(other.weights_digest)[:8]}"
    with pytest.raises(StateError, match=digests):
        AutoAmortizer.for_state(state, encoder, weights=str(tmp_path / "other"))


def test_a_cached_repository_is_named_by_id_and_commit(encoder: Backbone, mine: Path, tmp_path: Path) -> None:
    commit = "ab" * 20
    snapshot = tmp_path / "hub" / "models--someone--films" / "snapshots" / commit
    shutil.copytree(mine, snapshot)
    amortizer = AutoAmortizer.from_pretrained(snapshot, backbone=encoder)
    assert amortizer.config.weights == f"someone/films@{commit}"
    state = amortizer.adapt(examples(30), progress=False)
    assert str(tmp_path) not in state.header.to_json().replace(encoder.name, "")
    older = dataclasses.replace(state.header, config={**state.header.config, "weights": str(snapshot)})
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(Exception, match=f"someone/films.*{commit[:8]}|someone/films"):
        AutoAmortizer.for_state(TaskState(state.tensors, older), encoder)


def test_a_cached_backbone_is_named_by_id_and_commit_on_cards_too(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "cd" * 20
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / commit
    shutil.copytree(encoder_folder, snapshot)
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=str(snapshot))
    state = amortizer.adapt(examples(30), progress=False)
    assert (state.header.backbone, state.header.backbone_revision) == ("someone/tiny", commit)
    assert "base_model: someone/tiny\n" in state_card(state.header, state.nbytes, "someone/films")
    for name in (str(tmp_path), "C:\\models\\tiny", "./tiny", "~/models/tiny"):
        header = dataclasses.replace(state.header, backbone=name)
        assert "base_model" not in state_card(header, state.nbytes, "someone/films")


def test_a_backbone_of_another_cache_is_found_again_where_it_is(encoder_folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "elsewhere" / "models--someone--tiny" / "snapshots" / ("cd" * 20)
    shutil.copytree(encoder_folder, snapshot)
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=str(snapshot))
    state = amortizer.adapt(examples(30), progress=False)
    assert AutoAmortizer.for_state(state).backbone.name == str(snapshot)


def test_a_relative_folder_is_no_strangers_repository(
    encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(encoder_folder, tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone="models/tiny")
    state = TaskState.from_pretrained(amortizer.adapt(examples(30), progress=False).save_pretrained("state"))
    amortizer.save_pretrained("amortizer")
    cards = [
        state_card(state.header, state.nbytes, "someone/films"),
        state_card(state.published().header, state.published().nbytes, "someone/films"),
        amortizer_card(AutoAmortizer.describe("amortizer"), "someone/amortizer"),
    ]
    for card in cards:
        assert "base_model" not in card
        assert str(tmp_path) not in card
        assert 'backbone="./tiny"' in card
    monkeypatch.chdir("/")
    assert AutoAmortizer.for_state(state).predict(state, QUERIES).outputs
    with pytest.raises(BackboneError, match=r"'\./tiny'"):
        AutoAmortizer.for_state(state.published())


def test_another_backbone_is_refused_by_its_digest(causal: Backbone, encoder: Backbone) -> None:
    state = AutoAmortizer.from_pretrained("iterative", backbone=encoder).adapt(examples(20), progress=False)
    with pytest.raises(StateError, match=f"{encoder.fingerprint[:8]}.*{causal.fingerprint[:8]}"):
        AutoAmortizer.for_state(state, causal.name)


def test_a_state_answers_with_other_settings_on_the_backbone_that_it_has() -> None:
    numbers = AutoAmortizer.from_pretrained("numeric-parametric")
    state = numbers.init_state(TaskSpec("regression", columns=("size", "age")))
    state = numbers.update(state, Chunk(((1.0, 2.0), (0.0, 1.0), (3.0, 0.0)), ("1", "2", "5")))
    settings: tuple[dict[str, Any] | None, ...] = (None, {}, None)
    answers = [state.predict([(1.0, 2.0)], config=config).outputs for config in settings]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize(("asked", "expected"), [(None, "a" * 40), ("main", "main")])
def test_a_backbone_is_loaded_at_the_states_own_revision(
    asked: str | None, expected: str, encoder: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = AutoAmortizer.from_pretrained("iterative", backbone=encoder).init_state()
    pinned = TaskState(state.tensors, dataclasses.replace(state.header, backbone_revision="a" * 40))
    loading = Mock(return_value=encoder)
    monkeypatch.setattr(restore, "load_backbone", loading)
    AutoAmortizer.for_state(pinned, revision=asked)
    assert loading.call_args.kwargs["revision"] == expected


def test_a_commit_that_is_gone_is_named() -> None:
    with pytest.raises(BackboneError, match=f"at revision {'c' * 40}.*another revision or a copy") as refused:
        load_backbone("sentence-transformers/all-MiniLM-L6-v2", revision="c" * 40, local_files_only=True)
    assert refused.value.options == ("revision", "backbone")


def test_an_amortizer_without_its_weights_is_not_taken_for_an_untrained_one(encoder: Backbone, mine: Path) -> None:
    assert json.loads((mine / "config.json").read_text())["config"]["weights"] is None
    (mine / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"lacks model\.safetensors"):
        AutoAmortizer.from_pretrained(mine, backbone=encoder)
