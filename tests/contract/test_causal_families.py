"""Every method on tiny random models of many families says what transformers and PEFT alone say, or refuses by name.

The reference is one plain forward pass a query and an answer, float32, without cache. Windows are 16 tokens wide, the
prefix has about 60.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import tiny_backbones
import torch

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState, load_backbone
from iai_hf.backbones.causal_lm import CausalLM
from iai_hf.backbones.conditions import Condition
from iai_hf.backbones.packing import Row
from iai_hf.errors import BackboneError, StateError
from iai_hf.language_model.peft_export import PROMPT_IDS
from iai_hf.language_model.prompted import Prompted
from iai_hf.language_model.prompting import STOP

LABELS = ("sports", "music", "food")
TEXTS = (
    "ball team goal score coach match referee",
    "song",
    "bread soup spice oven salt dinner recipe cheese a the of and",
)
TASK = TaskSpec("classification", LABELS)
CHUNK = Chunk(
    ("goal of the team", "a song and a guitar", "salt and soup", "the referee", "melody of the band", "cheese"),
    LABELS * 2,
)
CLOSE: dict[str, Any] = {"atol": 1e-3, "rtol": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    "in-context": {"demonstration_tokens": 80},
    "prompt-tuning": {"num_virtual_tokens": 20, "learning_rate": 0.3},
    "lora": {"rank": 2, "learning_rate": 0.05},
    "lm-state": {"rank": 2, "layers": 1, "learning_rate": 0.1, "demonstration_tokens": 64, "batch_size": 2},
}
# Found by the self-test; here only so that a family does not become slow unseen.
PLAIN = {
    *("gpt-neo", "bloom", "falcon-alibi", "mpt", "mamba", "mamba2", "falcon-mamba", "rwkv", "recurrent-gemma"),
    *("jamba", "granite-moe-hybrid", "qwen3-next", "lfm2"),
}
WHOLE = {
    "gemma3n",
    "gemma3n-shared",
}  # what is between its layers is more than hidden states: rows can't be entered at a layer
NO_SOFT_PROMPT = {"gemma3n", "gemma3n-shared"}  # it looks up more than one embedding a token
# Families that neither have the usual layers nor are known to PEFT, and layers to name there.
NAMED = {"mamba": ["in_proj", "x_proj"], "falcon-mamba": ["in_proj", "x_proj"], "mamba2": ["in_proj"]}
FAMILIES = list(tiny_backbones.CAUSAL)


@cache
def folder_of(family: str) -> Path:
    changes: dict[str, Any] = {"max_seq_len": tiny_backbones.POSITIONS} if family == "mpt" else {}
    return tiny_backbones.make(Path(mkdtemp()), family, **changes)


@cache
def backbone_of(family: str) -> CausalLM:
    found = load_backbone(str(folder_of(family)), dtype="float32")
    assert isinstance(found, CausalLM)
    return found


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def plain_scores(model: Any, before: Sequence[int], row: Row) -> torch.Tensor:
    """Log-probability of each answer, by one forward pass each."""
    found = []
    for answer in row.answers:
        ids = torch.tensor([[*before, *row.query, *answer]])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
        first = len(logits) - len(answer) - 1
        found.append(sum(logits[first + i, token] for i, token in enumerate(answer)))
    return torch.stack(found)


def random_rows(count: int = 3) -> list[Row]:
    generator = torch.Generator().manual_seed(1)

    def some(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 300, (length,), generator=generator).tolist())

    return [Row(some(26 - 7 * i), (some(1), some(3 + i))) for i in range(count)]


BEFORE = tuple(torch.randint(5, 300, (60,), generator=torch.Generator().manual_seed(2)).tolist())


def adapted(family: str, method: str) -> tuple[Prompted, TaskState]:
    settings = SETTINGS[method]
    if method in ("lora", "lm-state") and family in NAMED:
        settings = {**settings, "target_modules": NAMED[family]}
    amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone_of(family), config=settings)
    assert isinstance(amortizer, Prompted)
    state = amortizer.init_state(TASK)
    for _ in range(2):
        state = amortizer.update(state, CHUNK)
    return amortizer, state


@pytest.mark.parametrize("before", [(), BEFORE], ids=["alone", "behind a prefix"])
def test_scores_and_losses_are_those_of_plain_passes(family: str, before: tuple[int, ...]) -> None:
    model, rows = backbone_of(family), random_rows()
    assert model.abilities.packed == (family not in PLAIN)
    prefix = model.encode_prefix(before)
    expected = torch.stack([plain_scores(model.model, [*model.special_tokens[0], *before], row) for row in rows])
    torch.testing.assert_close(torch.stack(model.score(Condition(prefix), rows)), expected, **CLOSE)
    first = [Row(row.query, row.answers[:1]) for row in rows]
    torch.testing.assert_close(-model.losses(first, Condition(prefix)).sums, expected[:, 0], **CLOSE)
    for layer in range(int(model.model.config.num_hidden_layers)):
        condition = Condition(prefix, first_layer=layer)
        prefilled = model.prefill(first, condition)
        assert all((row.hidden_cache is not None) == (family not in PLAIN | WHOLE) for row in prefilled)
        torch.testing.assert_close(-model.losses(prefilled, condition).sums, expected[:, 0], **CLOSE)


def test_next_tokens_are_those_of_plain_passes(family: str) -> None:
    model, rows = backbone_of(family), random_rows()
    start = model.special_tokens[0]
    with torch.no_grad():
        found = model.next_tokens([row.query for row in rows], Condition(model.encode_prefix(BEFORE)))
        parts = [model.model(torch.tensor([[*start, *BEFORE, *row.query]]), use_cache=False).logits[0] for row in rows]
    expected = [part[-len(row.query) :].log_softmax(-1) for part, row in zip(parts, rows, strict=True)]
    torch.testing.assert_close(found, torch.cat(expected), **CLOSE)


def test_answers_are_those_of_the_likeliest_tokens(family: str) -> None:
    model, rows = backbone_of(family), random_rows()
    found = model.generate(Condition(model.encode_prefix(BEFORE)), rows, 6, STOP)
    for row, answer in zip(rows, found, strict=True):
        ids = [*model.special_tokens[0], *BEFORE, *row.query]
        new: list[int] = []
        while len(new) < 6 and (not new or new[-1] not in model._ends(STOP)):
            with torch.no_grad():
                new.append(int(model.model(torch.tensor([ids + new]), use_cache=False).logits[0, -1].argmax()))
        assert answer == model.texts.until(new, STOP)


@pytest.mark.parametrize("method", SETTINGS)
def test_a_state_answers_as_its_peft_export(family: str, method: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if method in ("lora", "lm-state") and family in NAMED:
        with pytest.raises(BackboneError, match=r"no linear layers called .* it has .*in_proj.*target_modules"):
            AutoAmortizer.from_pretrained(method, backbone=backbone_of(family))
    if method == "prompt-tuning" and family in NO_SOFT_PROMPT:
        with pytest.raises(BackboneError, match="no soft prompt; choose"):
            adapted(family, method)
        return
    amortizer, state = adapted(family, method)
    model = amortizer.prompter.model
    rows = [amortizer.prompter.row(text, LABELS) for text in TEXTS]
    found = torch.stack(model.score(amortizer.prepared(state), rows))
    if method == "in-context":
        before = [*model.special_tokens[0], *state.tensors["tokens"].tolist()]
        expected = torch.stack([plain_scores(model.model, before, row) for row in rows])
        assert len(before) > 48
        torch.testing.assert_close(found, expected, **CLOSE)
        if family in PLAIN | {"deepseek-v3"}:
            with pytest.raises(StateError, match="prefix adapter can't hold; export a state of"):
                amortizer.export(state, tmp_path)
            assert not list(tmp_path.iterdir())
            return
    if (family, method) == ("mpt", "lm-state"):
        with pytest.raises(StateError, match="PEFT does not switch"):
            amortizer.export(state, tmp_path)
        return
    amortizer.export(state, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(folder_of(family), dtype=torch.float32)
    start = model.special_tokens[0] if method == "lora" else []
    if (tmp_path / PROMPT_IDS).exists():
        start = json.loads((tmp_path / PROMPT_IDS).read_text())
    unadapted = plain_scores(base, start, rows[0])
    exported = PeftModel.from_pretrained(base, tmp_path).eval()
    expected = torch.stack([plain_scores(exported, start, row) for row in rows])
    assert (expected[0] - unadapted).abs().max() > 1e-2, "the adapter changes nothing: its equality says nothing"
    torch.testing.assert_close(found, expected, **CLOSE)
    ids, new = [*start, *rows[0].query], list[int]()
    while len(new) < 3 and (not new or new[-1] not in model._ends(STOP)):
        with torch.no_grad():
            logits = exported(input_ids=torch.tensor([ids + new]), use_cache=False).logits[0, -1]
        new.append(int(logits.argmax()))
    answer = model.generate(amortizer.prepared(state), rows, 3, STOP)[0]
    assert answer == model.texts.until(new, STOP)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", ["q_proj", "k_proj", "v_proj", "o_proj"]),
        ("opt", ["q_proj", "k_proj", "v_proj"]),
        ("gpt2", ["c_attn"]),
        ("falcon", ["query_key_value"]),
        ("phi3", ["o_proj", "qkv_proj"]),
        ("deepseek-v3", ["kv_a_proj_with_mqa", "o_proj", "q_a_proj", "q_b_proj"]),
        ("rwkv", ["key", "value", "receptance", "output"]),
    ],
)
def test_low_rank_weights_find_their_layers_by_family(name: str, expected: list[str]) -> None:
    amortizer = AutoAmortizer.from_pretrained("lora", backbone=backbone_of(name), config={"rank": 2})
    assert amortizer.config.target_modules == expected
    state = amortizer.init_state(TASK)
    again = AutoAmortizer.for_state(state, amortizer.backbone)
    assert again.fingerprint == amortizer.fingerprint


def test_weights_that_would_change_the_demonstrations_are_refused() -> None:
    settings = {**SETTINGS["lm-state"], "target_modules": ["kv_b_proj"]}
    with pytest.raises(BackboneError, match=r"kv_b_proj to its cache too.*demonstration_tokens to 0"):
        AutoAmortizer.from_pretrained("lm-state", backbone=backbone_of("deepseek-v3"), config=settings)


SEVERAL = ["llama", "gemma3", "llama4", "gemma3n-shared", "bloom", "mamba", "jamba"]


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("name", SEVERAL)
def test_states_that_are_asked_together_answer_as_each_alone(name: str, method: str) -> None:
    if method == "prompt-tuning" and name in NO_SOFT_PROMPT:
        return
    amortizer, one = adapted(name, method)
    other = amortizer.update(amortizer.init_state(TASK), CHUNK)
    states = [one, other, one]
    for state, text, answer in zip(states, TEXTS, amortizer.predict_each(states, TEXTS), strict=True):
        torch.testing.assert_close(answer.log_probs, amortizer.predict(state, [text]).log_probs, **CLOSE)
    free = [amortizer.init_state(TaskSpec("generation"))] * 2 + [
        amortizer.update(amortizer.init_state(TaskSpec("generation")), CHUNK)
    ]
    for state, text, answer in zip(free, TEXTS, amortizer.predict_each(free, TEXTS), strict=True):
        assert answer.outputs == amortizer.predict(state, [text]).outputs


@pytest.mark.parametrize("name", SEVERAL)
def test_a_language_model_state_without_demonstrations_is_read_from_its_start(name: str) -> None:
    settings = {**SETTINGS["lm-state"], "demonstration_tokens": 0}
    if name in NAMED:
        settings["target_modules"] = NAMED[name]
    amortizer = AutoAmortizer.from_pretrained("lm-state", backbone=backbone_of(name), config=settings)
    state = amortizer.update(amortizer.init_state(TASK), CHUNK)
    assert int(state.tensors["steps"]) > 0
    assert amortizer.predict(state, TEXTS).log_probs.isfinite().all()  # type: ignore[union-attr]


def test_features_are_those_of_the_middle_layer(family: str) -> None:
    model = backbone_of(family)
    if family in WHOLE:
        with pytest.raises(BackboneError, match="gives no features; choose"):
            model.features(TEXTS)
        return
    before = [*model.special_tokens[0], *model.feature_prompt]
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            ids = torch.tensor([[*before, *model.tokens(text)]])
            hidden = model.model.base_model(ids, output_hidden_states=True, use_cache=False).hidden_states
        expected.append(hidden[len(hidden) // 2][0, len(before) :].sum(0))
    found = model.features(TEXTS).vectors
    torch.testing.assert_close(found, torch.nn.functional.normalize(torch.stack(expected), dim=1), **CLOSE)
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=model)
    state = amortizer.update(amortizer.init_state(TASK), CHUNK)
    assert amortizer.predict(state, TEXTS).log_probs.isfinite().all()  # type: ignore[union-attr]
