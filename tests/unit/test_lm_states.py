"""States inside the language model: rows of several tasks together, export to PEFT, sampling."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import tiny_backbones
import torch
from conftest import LABELS, examples, log_probs

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.backbones import Backbone, load_backbone, packed_pass
from iai_hf.backbones.causal_lm import CausalLM
from iai_hf.backbones.conditions import Sampling
from iai_hf.backbones.packing import Row
from iai_hf.backbones.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from iai_hf.errors import BackboneError, ConfigError, DataError, StateError
from iai_hf.language_model.gradient import PREFILL_ROWS, PREFILL_TOKENS, Gradient, prefill_groups
from iai_hf.language_model.peft_export import PROMPT, PROMPT_IDS
from iai_hf.language_model.prompted import Prompted

WORDS = TaskSpec("generation")
TEXTS = ["the match was won", "shares fell", "rain is expected in the north today"]
ADAPTED: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "learning_rate": 0.03},
    "lm-state": {"rank": 2, "layers": 1, "learning_rate": 0.1, "input_label": "Input"},
    "prompt-tuning": {"num_virtual_tokens": 3, "learning_rate": 0.3},
    "in-context": {"demonstration_tokens": 64},
}


def adapted(method: str, backbone: Backbone, seed: int = 0, task: TaskSpec = WORDS) -> tuple[Prompted, TaskState]:
    amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone, config=ADAPTED[method])
    assert isinstance(amortizer, Prompted)
    state = amortizer.init_state(task)
    rows = examples(16, seed=seed)
    chunk = Chunk(tuple(row["input"] for row in rows), tuple(row["output"] for row in rows))
    for _ in range(3):
        state = amortizer.update(state, chunk)
    return amortizer, state


def plain_logits(model: torch.nn.Module, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].float()


@pytest.mark.parametrize("method", ADAPTED)
def test_an_exported_state_is_a_peft_adapter_with_the_same_logits(
    method: str, causal: CausalLM, causal_folder: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    amortizer, state = adapted(method, causal)
    amortizer.export(state, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(causal_folder, dtype=torch.float32)
    row = amortizer.prompter.row(TEXTS[0], ["music"])
    prompt = tmp_path / "adapter" / PROMPT
    query = (amortizer.prompter.model.tokens(prompt.read_text()) if prompt.exists() else ()) + row.query
    assert prompt.exists() == (method == "lm-state")
    before = plain_logits(base, query)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    after = plain_logits(loaded, query)
    expected = amortizer.prompter.model.score(amortizer.prepared(state), [row])[0]
    with torch.no_grad():
        whole = loaded(input_ids=torch.tensor([query + row.answers[0]])).logits[0].log_softmax(-1)
    answer = row.answers[0]
    first = len(whole) - len(answer) - 1
    found = sum(whole[first + i, token] for i, token in enumerate(answer))
    torch.testing.assert_close(found, expected[0], rtol=1e-4, atol=1e-4)
    assert (after - before).abs().max() > 1e-3, "the adapter changes nothing, so that its equality says nothing"


def test_a_lora_export_has_the_names_of_peft(causal: CausalLM, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    amortizer, state = adapted("lm-state", causal)
    amortizer.export(state, tmp_path)
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    expected = {"peft_type": "LORA", "r": 2, "lora_alpha": 32, "bias": "none", "modules_to_save": None}
    assert expected.items() <= config.items()
    assert not config["use_dora"]
    assert set(config["target_modules"]) == {"v_proj", "o_proj"}
    name = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.self_attn\.[vo]_proj\.lora_[AB]\.weight")
    tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
    assert {match.group(1) for match in map(name.fullmatch, tensors) if match} == {"1"}
    assert all(map(name.fullmatch, tensors))
    assert all(tensor.shape[0 if "lora_A" in key else 1] == 2 for key, tensor in tensors.items())


def test_an_export_into_a_used_folder_leaves_nothing_of_the_old_adapter(causal: CausalLM, tmp_path: Path) -> None:
    amortizer, state = adapted("lm-state", causal)
    amortizer.export(state, tmp_path)
    ids = json.loads((tmp_path / PROMPT_IDS).read_text())
    assert ids == [*causal.special_tokens[0], *state.tensors["demonstrations"].tolist()]
    amortizer, state = adapted("lora", causal)
    amortizer.export(state, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", ADAPTER_CONFIG, ADAPTER_WEIGHTS]
    assert PROMPT_IDS not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("method", ["in-context", "prompt-tuning", "lora", "lm-state"])
def test_the_card_of_an_export_answers_as_the_state_without_this_package(
    method: str, causal_folder: Path, tmp_path: Path
) -> None:
    causal = load_backbone(str(causal_folder), dtype="float32")
    config = {"max_new_tokens": 5, "max_tokens": 3}
    amortizer = AutoAmortizer.from_pretrained(method, backbone=causal, config=config)
    state = amortizer.adapt(examples(24), task=TaskSpec("generation"), progress=False)
    amortizer.export(state, tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0].replace(" a text to answer", f" {TEXTS[0]}")
    snippet = snippet.replace(f"./{causal_folder.name}", str(causal_folder))  # a folder here means nothing elsewhere
    blocked = f"import sys\nsys.modules['iai_hf'] = None\n{snippet}"
    run = subprocess.run([sys.executable, "-c", blocked], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.strip().split("\n")[-1] == amortizer.predict(state, TEXTS[:1]).outputs[0]


def test_a_state_that_is_no_adapter_is_not_exported(encoder: Backbone, causal: CausalLM, tmp_path: Path) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    with pytest.raises(ConfigError, match="PEFT form"):
        amortizer.export(amortizer.init_state(TaskSpec("classification", LABELS)), tmp_path / "adapter")
    empty = AutoAmortizer.from_pretrained("in-context", backbone=causal)
    with pytest.raises(StateError, match="demonstration"):
        empty.export(empty.init_state(WORDS), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("method", ["lora", "lm-state", "prompt-tuning"])
@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_rows_of_several_tasks_are_answered_as_each_alone(method: str, kind: str, causal: CausalLM) -> None:
    task = TaskSpec(kind, LABELS if kind == "classification" else ())  # type: ignore[arg-type]
    amortizer, one = adapted(method, causal, 0, task)
    other = adapted(method, causal, 1, task)[1]
    found = amortizer.predict_each([one, other, one], TEXTS)
    for state, text, answer in zip([one, other, one], TEXTS, found, strict=True):
        alone = amortizer.predict(state, [text])
        assert answer.outputs == alone.outputs
        if kind == "classification":
            torch.testing.assert_close(answer.log_probs, alone.log_probs, rtol=1e-4, atol=1e-4)


def test_rows_of_several_tasks_run_in_one_forward_pass(causal: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TaskSpec("classification", LABELS)
    amortizer, one = adapted("lm-state", causal, 0, task)
    states = [one, adapted("lm-state", causal, 1, task)[1], one]
    assert causal.abilities.packed  # the self-test has passes of its own
    passes = Mock(side_effect=packed_pass.logits)
    monkeypatch.setattr(packed_pass, "logits", passes)
    amortizer.predict_each(states, TEXTS)
    assert passes.call_count == 1
    with pytest.raises(DataError, match="one for each"):
        amortizer.predict_each(states[:2], TEXTS)


def test_adapting_and_answering_leave_the_backbone_as_it_was(causal: CausalLM) -> None:
    def hooks() -> int:  # transformers installs some of its own at first use
        return sum(len(module._forward_hooks) for module in causal.model.modules())

    causal.features(TEXTS)
    before, hooked = {name: tensor.clone() for name, tensor in causal.model.state_dict().items()}, hooks()
    amortizer, state = adapted("lm-state", causal)
    amortizer.predict(state, TEXTS)
    after = causal.model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert hooks() == hooked


def test_a_second_pass_over_a_chunk_is_a_second_update(causal: CausalLM) -> None:
    rows = examples(16)
    chunk = Chunk(tuple(row["input"] for row in rows), tuple(row["output"] for row in rows))
    once, twice = (
        AutoAmortizer.from_pretrained("lora", backbone=causal, config={"rank": 2, "passes": passes})
        for passes in (1, 2)
    )
    expected = once.update(once.update(once.init_state(WORDS), chunk), chunk)
    found = twice.update(twice.init_state(WORDS), chunk)
    torch.testing.assert_close(dict(found.tensors), dict(expected.tensors))
    assert found.header.examples == 16
    with pytest.raises(ConfigError, match="passes is 0"):
        AutoAmortizer.from_pretrained("lora", backbone=causal, config={"passes": 0})


def test_an_untrained_lm_state_without_examples_is_the_plain_model(causal: CausalLM) -> None:
    task = TaskSpec("classification", LABELS)
    amortizer = AutoAmortizer.from_pretrained("lm-state", backbone=causal, config=ADAPTED["lm-state"])
    plain = AutoAmortizer.from_pretrained("in-context", backbone=causal, config={"input_label": "Input"})
    found = amortizer.predict(amortizer.init_state(task), TEXTS).log_probs
    torch.testing.assert_close(found, plain.predict(plain.init_state(task), TEXTS).log_probs, rtol=1e-5, atol=1e-5)


def test_before_its_first_step_lm_state_is_in_context_learning_on_its_first_examples(causal: CausalLM) -> None:
    task = TaskSpec("classification", LABELS)
    rows = examples(3)
    chunk = Chunk(tuple(row["input"] for row in rows), tuple(row["output"] for row in rows))
    config = {**ADAPTED["lm-state"], "demonstration_tokens": 80}
    amortizer = AutoAmortizer.from_pretrained("lm-state", backbone=causal, config=config)
    plain = AutoAmortizer.from_pretrained(
        "in-context", backbone=causal, config={"demonstration_tokens": 80, "input_label": "Input"}
    )
    state = amortizer.update(amortizer.init_state(task), chunk)
    expected = plain.update(plain.init_state(task), chunk)
    assert state.tensors["demonstrations"].tolist() == expected.tensors["tokens"].tolist()
    assert int(state.tensors["steps"]) == 0
    found = amortizer.predict(state, TEXTS).log_probs
    torch.testing.assert_close(found, plain.predict(expected, TEXTS).log_probs, rtol=1e-5, atol=1e-5)
    refined = amortizer.update(amortizer.update(state, chunk), chunk)
    assert len(refined.tensors["demonstrations"]) <= 80
    kept = len(state.tensors["demonstrations"])
    assert refined.tensors["demonstrations"][:kept].tolist() == state.tensors["demonstrations"].tolist()
    assert int(refined.tensors["steps"]) > 0


@pytest.mark.parametrize("shown", [0, 2])
def test_losses_of_prefilled_rows_are_those_of_the_whole_model(shown: int, causal: CausalLM) -> None:
    config = {**ADAPTED["lm-state"], "target_modules": ["o_proj"]}
    amortizer = AutoAmortizer.from_pretrained("lm-state", backbone=causal, config=config)
    assert isinstance(amortizer, Gradient)
    rows = amortizer.rows(
        Chunk(tuple(row["input"] for row in examples(6)), tuple(row["output"] for row in examples(6)))
    )
    demonstrations = [amortizer.prompter.demonstration(text, "food")[0] for text in TEXTS[:shown]]
    retained = {"demonstrations": torch.tensor([token for tokens in demonstrations for token in tokens])}
    found = []
    for given in (rows, None):
        own = {
            name: torch.full_like(value, 0.1)
            for name, value in amortizer.learner.task_weights(amortizer.learner.initial()).items()
        }
        leaves = {name: value.requires_grad_() for name, value in own.items()}
        condition = amortizer.condition(leaves, amortizer.learner.shared_weights(), retained)
        losses = causal.losses(given or amortizer.prefill(rows, condition), condition)
        # Behind the last layer's attention no other position's keys and values follow, so this gradient is exact.
        found.append((losses.sums.detach(), *torch.autograd.grad(losses.sums.sum(), list(leaves.values()))))
    whole, read = found
    assert whole[1].abs().max() > 1e-3
    torch.testing.assert_close(read, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ADAPTED)
def test_sampling_follows_from_its_seed(method: str, causal: CausalLM) -> None:
    amortizer, state = adapted(method, causal)
    draws = [amortizer.generate(state, TEXTS, Sampling(temperature=3.0, seed=seed)) for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    amortizer.generate(state, TEXTS, Sampling(seed=0))
    assert torch.equal(torch.rand(1), expected), "sampling must leave the global generator alone"
    assert amortizer.generate(state, TEXTS) == list(amortizer.predict(state, TEXTS).outputs)


def test_a_linear_layer_that_the_model_lacks_is_named(causal: CausalLM) -> None:
    with pytest.raises(BackboneError, match="q_proj"):
        AutoAmortizer.from_pretrained("lora", backbone=causal, config={"target_modules": ["query"]})


def test_long_rows_are_split_over_batches_and_never_cut(causal: CausalLM) -> None:
    amortizer, state = adapted("lora", causal)
    long = " ".join(["rain"] * 300)
    refined = amortizer.update(state, Chunk((long, long, long, long), ("a", "b", "c", "d")))
    assert int(refined.tensors["steps"]) == int(state.tensors["steps"]) + 2
    with pytest.raises(DataError, match="context"):
        amortizer.update(state, Chunk((" ".join(["rain"] * 600),), ("a",)))


@pytest.mark.parametrize("length", [3, 100, 3000, 5000])
def test_what_is_prefill_groups_is_bounded_and_nothing_is_left_out(length: int) -> None:
    rows = [Row((number,) * length) for number in range(150)]
    groups = list(prefill_groups(rows))
    assert [row for group in groups for row in group] == rows
    assert all(len(group) <= PREFILL_ROWS for group in groups)
    assert all(len(group) == 1 or sum(map(len, group)) <= PREFILL_TOKENS for group in groups)


def test_demonstrations_begin_with_the_first_example_that_fits(causal: Backbone) -> None:
    config = {**ADAPTED["lm-state"], "demonstration_tokens": 40}
    amortizer: Any = AutoAmortizer.from_pretrained("lm-state", backbone=causal, config=config)
    rows = [("ball " * 60, "sports"), ("song of the band", "music"), ("soup", "food"), ("oven " * 25, "food")]
    state = amortizer.update(amortizer.init_state(), Chunk(*(tuple(column) for column in zip(*rows, strict=True))))
    expected = [token for text, output in rows[1:3] for token in amortizer.prompter.demonstration(text, output)[0]]
    assert state.tensors["demonstrations"].tolist() == expected
    assert state.header.counts["demonstrations_left_out"] == 1
    assert int(state.tensors["steps"]) == amortizer.config.passes  # on the two that are not kept


def test_that_no_demonstration_fits_is_told(causal: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    amortizer = AutoAmortizer.from_pretrained(
        "lm-state", backbone=causal, config={**ADAPTED["lm-state"], "demonstration_tokens": 10}
    )
    state = amortizer.update(amortizer.init_state(), Chunk(("ball " * 20, "song " * 30), ("sports", "music")))
    assert len(state.tensors["demonstrations"]) == 0
    assert state.header.counts["demonstrations_left_out"] == 2
    assert "no demonstration is kept" in caplog.text


def test_a_state_without_demonstrations_reads_start_of_text_once(tmp_path: Path) -> None:
    backbone = load_backbone(str(tiny_backbones.make(tmp_path, "llama")), dtype="float32")
    config = {**ADAPTED["lm-state"], "demonstration_tokens": 0}
    answers = []
    for passes in (1, 2):
        amortizer = AutoAmortizer.from_pretrained("lm-state", backbone=backbone, config={**config, "passes": passes})
        state = amortizer.adapt(examples(12), chunk_size=6, progress=False)
        answers.append(log_probs(amortizer.predict(state, TEXTS)))
    assert not torch.equal(*answers)
