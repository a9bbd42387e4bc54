"""Several threads at once: each gets what it would get alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from iai_hf import AutoAmortizer, TaskSpec, TaskState
from iai_hf.amortizers.learned import Learned
from iai_hf.backbones import Backbone
from iai_hf.errors import ConfigError
from iai_hf.files import check_writable
from iai_hf.state import CONFIG_FILE, STATE_FILE, WEIGHTS_FILE, StateHeader


def together(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls return, each made in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [made.result() for made in [pool.submit(call) for call in calls]]


def numbered(number: int) -> TaskState:
    header = StateHeader("m", {"x": number}, "f" * 32, "b", "0" * 32, TaskSpec(), number, 2)
    return TaskState({"w": torch.full((20_000,), float(number))}, header)


def test_one_folder_is_saved_and_loaded_by_several_threads(tmp_path: Path) -> None:
    numbered(0).save_pretrained(tmp_path)

    def save(number: int) -> None:
        for turn in range(10):
            check_writable(tmp_path)
            numbered(100 * number + turn).save_pretrained(tmp_path)

    def load() -> None:
        for _ in range(40):
            state = TaskState.from_pretrained(tmp_path)
            assert (state.tensors["w"] == state.header.examples).all()

    together(*(lambda number=number: save(number) for number in range(4)), load, load)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, STATE_FILE]
    described = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert described["examples"] == TaskState.from_pretrained(tmp_path).header.examples


def test_learned_weights_are_read_with_the_settings_that_they_were_saved_with(
    encoder: Backbone, tmp_path: Path
) -> None:
    made = {}
    for size in (16, 24):
        amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"max_features": size})
        assert isinstance(amortizer, Learned)
        for parameter in amortizer.module.parameters():
            parameter.data.fill_(size / 100)
        made[size] = amortizer
    made[16].save_pretrained(tmp_path)

    def save(size: int) -> None:
        for _ in range(20):
            made[size].save_pretrained(tmp_path)

    def load() -> int:
        found = 0
        for _ in range(30):
            try:
                amortizer = AutoAmortizer.from_pretrained(tmp_path, backbone=encoder)
            except ConfigError as error:
                assert "written anew" in str(error)
                continue
            size = amortizer.config.max_features
            assert all((tensor == size / 100).all() for tensor in amortizer.module.parameters())  # type: ignore[attr-defined]
            found += 1
        return found

    *_, found = together(lambda: save(16), lambda: save(24), load)
    assert found


def test_weights_of_another_run_beside_a_configuration_are_refused(
    encoder: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iai_hf.shipped.PAUSE", 0.0)
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"weights": None})
    assert isinstance(amortizer, Learned)
    amortizer.save_pretrained(tmp_path / "a")
    next(amortizer.module.parameters()).data += 1.0
    amortizer.save_pretrained(tmp_path / "b")
    (tmp_path / "a" / WEIGHTS_FILE).write_bytes((tmp_path / "b" / WEIGHTS_FILE).read_bytes())
    with pytest.raises(ConfigError, match="damaged or replaced"):
        AutoAmortizer.from_pretrained(tmp_path / "a", backbone=encoder)
