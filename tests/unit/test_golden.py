"""Nothing changes by accident: every method answers as the fixtures say, also from states that were saved then."""

from __future__ import annotations

import json
from typing import Any

import golden
import pytest
import torch
from golden import CASES, DEEP_TOLERANCE, REAL, TOLERANCE, Case

from iai_hf import AutoAmortizer, TaskState
from iai_hf.amortizer import Amortizer


def compare(found: dict[str, Any], name: str) -> None:
    expected = json.loads((golden.folder(name) / "expected.json").read_text())
    if name in CASES and CASES[name].former:
        del expected["whole"], found["whole"]
    near = DEEP_TOLERANCE if "deep" in name else TOLERANCE
    assert found.keys() == expected.keys()
    for end, answers in expected.items():
        assert found[end].keys() == answers.keys()
        for key, values in answers.items():
            if key == "outputs":
                assert found[end][key] == values, (name, end)
            else:
                wanted, given = torch.tensor(values), torch.tensor(found[end][key])
                torch.testing.assert_close(given, wanted, rtol=near, atol=near, msg=lambda m: f"{name}: {m}")


def answers_anew(case: Case, model: Amortizer) -> dict[str, Any]:
    return golden.answers(case, model, golden.part(case, model))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.former])
def test_it_answers_as_it_did(name: str) -> None:
    compare(answers_anew(CASES[name], golden.stored(name, CASES[name])), name)


@pytest.mark.parametrize("name", CASES)
def test_a_saved_state_answers_as_it_did_and_goes_on(name: str) -> None:
    case = CASES[name]
    state = TaskState.from_pretrained(golden.folder(name) / "state.safetensors")
    backbone = golden.backbone(case.backbone)
    weights = str(golden.folder(name) / "weights") if case.trained else None
    model = AutoAmortizer.for_state(state, backbone, weights=weights)
    assert state.header.examples == 16
    compare(golden.answers(case, model, state), name)


@pytest.mark.parametrize("name", REAL)
def test_a_real_backbone_answers_as_it_did(name: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue("minilm" if name.startswith("minilm") else "smollm")  # skipped where it is not installed
    compare(answers_anew(REAL[name], golden.amortizer(REAL[name])), name)


def test_the_fixtures_are_small_and_there_is_one_a_case() -> None:
    files = [path for path in golden.FIXTURES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_500 * len([*CASES, *REAL])
    assert {path.name for path in golden.FORMAT_2.iterdir()} == {*CASES, *REAL}
