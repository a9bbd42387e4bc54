"""States of older formats, committed as they were written: they load, answer the same, and go on in their stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from iai_hf import AutoAmortizer, TaskState
from iai_hf.backbones import load_backbone

FORMAT_1 = Path(__file__).parents[1] / "fixtures" / "format-1"
EXPECTED = json.loads((FORMAT_1 / "expected.json").read_text())


@pytest.mark.parametrize(
    ("method", "backbone"), [("iterative", "encoder"), ("in-context", "causal"), ("lm-state", "causal")]
)
def test_a_state_of_format_1_answers_as_it_did_and_goes_on(method: str, backbone: str) -> None:
    state = TaskState.from_pretrained(FORMAT_1 / method)
    amortizer = AutoAmortizer.for_state(state, load_backbone(str(FORMAT_1 / backbone), dtype="float32"))
    whole = amortizer.adapt(FORMAT_1 / "train.jsonl", state, chunk_size=8, resume=True, progress=False)
    assert (state.header.examples, whole.header.examples) == (16, 24)
    for name, found in (("part", state), ("whole", whole)):
        expected = torch.tensor(EXPECTED["log_probs"][method][name])
        answers = amortizer.predict(found, EXPECTED["queries"]).log_probs
        torch.testing.assert_close(answers, expected, rtol=1e-3, atol=1e-3)
