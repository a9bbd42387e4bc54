"""Several threads at once: each gets what it would get alone."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import examples, log_probs

from iai_hf import AutoAmortizer, TaskSpec, TaskState, threads
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.backbones.conditions import Sampling
from iai_hf.errors import ConfigError
from iai_hf.files import CONFIG_FILE, STATE_FILE, WEIGHTS_FILE, check_writable
from iai_hf.header import StateHeader
from iai_hf.language_model.prompted import Prompted
from iai_hf.learned import Learned
from iai_hf.threads import Lock, alone, computing


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


def test_methods_on_one_language_model_do_not_mix(causal: Backbone) -> None:
    queries = [row["input"] for row in examples(6, seed=9)]
    amortizers = [
        AutoAmortizer.from_pretrained("lm-state", backbone=causal, config={"rank": 2, "layers": 1}),
        AutoAmortizer.from_pretrained("lora", backbone=causal, config={"rank": 2, "learning_rate": 0.1}),
        AutoAmortizer.from_pretrained("prompt-tuning", backbone=causal, config={"num_virtual_tokens": 4}),
        AutoAmortizer.from_pretrained("in-context", backbone=causal, config={"demonstration_tokens": 100}),
        AutoAmortizer.from_pretrained("iterative", backbone=causal),
    ]

    def adapted(amortizer: Amortizer, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        state = amortizer.adapt(examples(16, seed=seed), chunk_size=8, progress=False)
        answers = [log_probs(amortizer.predict(state, queries)) for _ in range(2)]
        assert all(torch.equal(found, answers[0]) for found in answers)
        again = amortizer.predict_each([state] * len(queries), queries)
        return answers[0], torch.cat(list(map(log_probs, again)))

    runs = [(amortizer, seed) for amortizer in amortizers for seed in (1, 2)]
    expected = [adapted(*run) for run in runs]
    found = together(*(lambda run=run: adapted(*run) for run in runs))
    for (amortizer, _), mine, theirs in zip(runs, expected, found, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5, msg=amortizer.method)


def test_threads_that_sample_draw_from_their_own_seed(causal: Backbone) -> None:
    amortizer = AutoAmortizer.from_pretrained("in-context", backbone=causal, config={"max_new_tokens": 8})
    other = AutoAmortizer.from_pretrained("in-context", backbone=copy.copy(causal), config={"max_new_tokens": 8})
    other.backbone.lock = Lock()  # two models
    state = amortizer.adapt(examples(8), progress=False)
    queries = [row["input"] for row in examples(8, seed=3)]

    def drawn(number: int) -> list[str]:
        made = (amortizer, other)[number % 2]
        assert isinstance(made, Prompted)
        return made.generate(state, queries, Sampling(temperature=3.0, seed=number))

    def disturbed() -> None:
        for _ in range(2000):
            torch.rand(8)

    alone = [drawn(number) for number in range(4)]
    assert together(*(lambda number=number: drawn(number) for number in range(4)), disturbed)[:4] == alone


def test_the_likelier_a_token_the_more_often_it_is_drawn() -> None:
    from iai_hf.backbones.sampling import processors

    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    scores = probabilities.log().expand(20_000, -1)
    for sampling, expected in (
        (Sampling(seed=1), probabilities),
        (Sampling(temperature=0.5), probabilities.square() / probabilities.square().sum()),
        (Sampling(top_p=0.6), torch.tensor([0.625, 0.375, 0.0, 0.0])),
    ):
        found = processors(sampling)(torch.zeros(20_000, 1, dtype=torch.long), scores).argmax(-1)  # type: ignore[arg-type]
        shares = torch.bincount(found, minlength=4) / len(found)
        torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)


def test_the_first_predict_of_several_threads_leaves_the_process_as_it_was(
    causal_folder: Path, encoder_folder: Path
) -> None:
    from transformers.utils import logging

    before = torch.get_default_dtype(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    states = []
    for method, folder in (("iterative", encoder_folder), ("lora", causal_folder)):
        backbone = load_backbone(str(folder), dtype="bfloat16")
        amortizer = AutoAmortizer.from_pretrained(method, backbone=backbone)
        states.append(amortizer.adapt(examples(16), progress=False))
    expected = [log_probs(state.predict(["the match", "a song"], dtype="bfloat16")) for state in states]
    for _ in range(5):
        fresh = [TaskState(state.tensors, state.header) for state in states]
        found = together(
            *(lambda state=state: state.predict(["the match", "a song"], dtype="bfloat16") for state in fresh * 4)
        )
        after = torch.get_default_dtype(), logging.get_verbosity(), logging.is_progress_bar_enabled()
        assert after == before
        for prediction, scores in zip(found, expected * 4, strict=True):
            assert torch.equal(log_probs(prediction), scores)


def test_a_state_loads_its_backbone_once(encoder: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    state = amortizer.adapt(examples(16), progress=False)
    loaded = []

    def load(*_: Any, **__: Any) -> Backbone:
        time.sleep(0.05)
        loaded.append(1)
        return encoder

    monkeypatch.setattr("iai_hf.restore.load_backbone", load)
    together(*(lambda: state.predict(["the match"]) for _ in range(4)))
    assert len(loaded) == 1


def test_weights_drawn_in_several_threads_are_those_of_their_seed() -> None:
    sizes = {"inputs": 12, "outputs": 3, "hidden": 16, "layers": 1}

    def made(seed: int) -> str:
        config = {"kind": "classification", "seed": seed, **sizes}
        return AutoAmortizer.from_pretrained("numeric-explicit", config=config).fingerprint

    expected = [made(seed) for seed in range(8)]
    assert together(*(lambda seed=seed: made(seed) for seed in range(8))) == expected


def test_ctrl_c_in_waiting_to_be_alone_lets_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, end = threading.Event(), threading.Event()

    def work() -> None:
        with computing():
            begun.set()
            assert end.wait(10)

    def wait(timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    def next_one() -> int:
        with alone():
            pass
        with computing():
            return 1

    for inside in (nullcontext, computing):  # alone from the first, or in the midst of a computation
        begun.clear()
        end.clear()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(work)
            assert begun.wait(10)
            monkeypatch.setattr(threads._changed, "wait", wait)
            with pytest.raises(KeyboardInterrupt), inside(), alone():
                pass
            monkeypatch.undo()
            end.set()
            other.result()
        late = threading.Thread(target=next_one, daemon=True)
        late.start()
        late.join(10)
        assert not late.is_alive()


@pytest.mark.parametrize("name", ["traits", "linear_layers", "_tells_rows_apart"])
def test_what_a_pass_finds_out_may_be_asked_for_by_whoever_computes(encoder: Backbone, name: str) -> None:
    """Up to Python 3.11 the one waited for the backbone and the other for the property."""
    backbone = load_backbone(encoder.name)
    found: list[Any] = []

    def ask() -> None:
        found.append(getattr(backbone, name))

    def ask_while_computing() -> None:
        with computing(), backbone.lock:
            asking = threading.Thread(target=ask, daemon=True)
            asking.start()
            time.sleep(0.3)  # it waits for the backbone by now
            ask()
        asking.join(60)

    computes = threading.Thread(target=ask_while_computing, daemon=True)
    computes.start()
    computes.join(60)
    assert len(found) == 2
    assert found[0] == found[1]
