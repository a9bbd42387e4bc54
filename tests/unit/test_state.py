"""State files: whole, exact, and refused with a reason where they are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from iai_hf import TaskSpec, TaskState
from iai_hf.errors import DataError, StateError
from iai_hf.files import STATE_FILE
from iai_hf.header import StateHeader, StreamPosition

SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32])


def make(tensors: dict[str, torch.Tensor] | None = None, labels: tuple[str, ...] = ("a", "ü\n")) -> TaskState:
    header = StateHeader("m", {"x": 1, "y": None}, "f" * 32, "b", "0" * 32, TaskSpec("classification", labels), 5, 2)
    return TaskState(tensors if tensors is not None else {"w": torch.arange(6.0).reshape(2, 3)}, header)


@SAME_FOLDER
@given(
    shapes=st.dictionaries(st.text("abc", min_size=1), st.lists(st.integers(0, 4), max_size=3), max_size=4),
    dtype=DTYPES,
    labels=st.lists(st.text(min_size=1).filter(str.strip), unique=True, max_size=4),
    position=st.none() | st.integers(0, 10**12),
)
def test_a_state_survives_its_file(shapes, dtype, labels, position, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    state = make({name: torch.full(shape, 3).to(dtype) for name, shape in shapes.items()}, tuple(labels))
    if position is not None:
        state = state.at(StreamPosition("s", 8, None, position))
    loaded = TaskState.from_pretrained(state.save_pretrained(tmp_path))
    assert loaded.header == state.header
    assert loaded.nbytes == state.nbytes
    for name, tensor in state.tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)


@SAME_FOLDER
@given(data=st.data())
def test_a_changed_file_is_refused(data: st.DataObject, tmp_path: Path) -> None:
    path = make().save_pretrained(tmp_path) / STATE_FILE
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        loaded = TaskState.from_pretrained(tmp_path)
    except StateError as error:
        assert str(path) in str(error)
    else:  # a byte of the file's own metadata that nothing depends on
        assert loaded.header == make().header
        assert torch.equal(loaded.tensors["w"], make().tensors["w"])


def test_no_state_a_foreign_file_and_a_pickle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no task state"):
        TaskState.from_pretrained(tmp_path)
    save_file({"w": torch.zeros(1)}, tmp_path / STATE_FILE)
    with pytest.raises(StateError, match="no task state"):
        TaskState.from_pretrained(tmp_path)
    torch.save({"w": torch.zeros(1)}, tmp_path / STATE_FILE)
    with pytest.raises(StateError):
        TaskState.from_pretrained(tmp_path)


def test_a_newer_format_says_which_version_it_needs(tmp_path: Path) -> None:
    metadata = {"format": "iai_hf.state", "format_version": "99", "library_version": "9.9"}
    save_file({"w": torch.zeros(1)}, tmp_path / STATE_FILE, metadata)
    with pytest.raises(StateError, match=r"9\.9.*upgrade"):
        TaskState.from_pretrained(tmp_path)


def test_a_folder_that_cant_be_written_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make()
    old.save_pretrained(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        make({"w": torch.ones(2)}).save_pretrained(tmp_path)
    monkeypatch.undo()
    assert torch.equal(TaskState.from_pretrained(tmp_path).tensors["w"], old.tensors["w"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", STATE_FILE]
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="can't write"):
        old.save_pretrained(tmp_path / "file" / "below")


def test_labels_must_differ() -> None:
    with pytest.raises(DataError, match="distinct"):
        TaskSpec("classification", ("a", "a"))
    with pytest.raises(DataError, match="kind"):
        TaskSpec("ranking")  # type: ignore[arg-type]


def test_large_numbers_whose_sum_is_not_finite_make_a_state() -> None:
    assert float(make({"w": torch.full((4,), 3e38)}).tensors["w"][0]) > 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_neither_made_nor_saved_nor_read(value: float, tmp_path: Path) -> None:
    sound = make({"w": torch.ones(2), "count": torch.ones(1, dtype=torch.int64)})
    path = sound.save_pretrained(tmp_path) / STATE_FILE
    before = path.read_bytes()
    with pytest.raises(StateError, match="not finite, in w"):
        sound.advance({"w": torch.tensor([1.0, value])}, sound.task, 1, {}).save_pretrained(tmp_path)
    assert path.read_bytes() == before
    sound.tensors["w"].fill_(value)  # as one that an older version wrote
    sound.save_pretrained(tmp_path)
    with pytest.raises(StateError, match="not finite, in w"):
        TaskState.from_pretrained(tmp_path)
