"""Errors: typed whatever library they come from, the options that mend them told by the command line alone."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import pytest
import torch

from iai_hf import AutoAmortizer, Chunk, TaskSpec
from iai_hf import cli as command_line
from iai_hf.errors import ConfigError, DataError, StateError

ROWS = Chunk(((1.0, 2.0), (0.0, 1.0), (3.0, 0.0)), ("1", "2", "5"))


@pytest.mark.parametrize("broken", ["refine", "prepare", "answer"])
def test_equations_that_cannot_be_solved_are_a_typed_error(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        torch.linalg.cholesky(-torch.eye(2))

    amortizer = AutoAmortizer.from_pretrained("numeric-parametric")
    state = amortizer.update(amortizer.init_state(TaskSpec("regression", columns=("size", "age"))), ROWS)
    monkeypatch.setattr(amortizer, broken, fail)
    with pytest.raises(StateError, match=r"equations can't be solved .*positive-definite"):
        amortizer.predict(amortizer.update(state, ROWS), ROWS.inputs)


def test_what_methods_declare_is_what_is_advised() -> None:
    amortizer = AutoAmortizer.from_pretrained("numeric-parametric")
    state = amortizer.init_state(TaskSpec("regression", columns=("size", "age")))
    with pytest.raises(ConfigError, match=r"merges \(iterative, iterative-explicit, iterative-implicit\)"):
        amortizer.merge([state, state])
    with pytest.raises(ConfigError, match=r"have one \(in-context, iterative, lm-state, lora, prompt-tuning\)"):
        amortizer.export(state, "nowhere")
    with pytest.raises(DataError, match=r"not generation; .*\(in-context, lm-state, lora, prompt-tuning\)") as told:
        amortizer.init_state(TaskSpec("generation"))
    again = pickle.loads(pickle.dumps(told.value))
    assert (str(again), again.options) == (str(told.value), ("kind classification",))


def test_the_command_line_spells_the_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise DataError("a fault", options=("input_column", "quotes", "kind generation"))

    monkeypatch.setattr(command_line, "app", fail)
    monkeypatch.setattr(sys, "argv", ["iai"])
    with pytest.raises(SystemExit):
        command_line.main()
    assert capsys.readouterr().err == "error: a fault (--input-column, --quotes or --no-quotes, --kind generation)\n"
