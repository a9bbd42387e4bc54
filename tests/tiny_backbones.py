"""Tiny random backbones of many families: a folder each, as `save_pretrained` writes it, with a small tokenizer.

`make(folder, family)` makes one. Weights are wide enough for every difference to show, and the same at every call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TEXT = """ball team goal score coach match referee player song band guitar drum note melody concert singer bread soup
spice oven salt dinner recipe cheese sports music food a the of and Input Output What is this about query passage"""
WORDS = TEXT.split()
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]  # ids 0 to 4
VOCABULARY = 420  # rows of the embedding table; no tokenizer here has more
WINDOW = 16  # of families that attend to a window
POSITIONS = 512
LEFT_OUT = object()  # in the place of a setting that a family does not take

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
STATE_SPACE = {"state_size": 4, "conv_kernel": 4, "expand": 2}
OFFSET = {"max_position_embeddings": 66, "pad_token_id": 1}  # two positions are never used
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
SEQUENCE_TO_SEQUENCE = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}

# The type of the configuration, and what differs from `COMMON`.
Family = tuple[str, dict[str, Any]]
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODERS: dict[str, Family] = {
    "bert": ("bert", {}),
    "roberta": ("roberta", OFFSET),
    "xlm-roberta": ("xlm-roberta", OFFSET),
    "xlm-roberta-xl": ("xlm-roberta-xl", OFFSET),
    "camembert": ("camembert", OFFSET),
    "mpnet": ("mpnet", OFFSET),
    "longformer": ("longformer", {**OFFSET, "attention_window": [8, 8]}),
    "distilbert": ("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "deberta-v2": ("deberta-v2", {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}),
    "electra": ("electra", {"embedding_size": 16}),
    "albert": ("albert", {"embedding_size": 16}),
    "modernbert": ("modernbert", {"local_attention": WINDOW, "num_hidden_layers": 4}),
    "nomic-bert": ("nomic_bert", {}),
    "eurobert": ("eurobert", {**HEADS}),
    "xlnet": ("xlnet", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 64, "max_position_embeddings": LEFT_OUT}),
    "funnel": (
        "funnel",
        {
            "block_sizes": [1, 1],
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 64,
            "num_hidden_layers": LEFT_OUT,
            "architectures": ["FunnelModel"],  # there are two
        },
    ),
    "bart": ("bart", SEQUENCE_TO_SEQUENCE),
    "t5": ("t5", T5),
    "gemma3-embedder": (
        "gemma3_text",
        {**HEADS, "use_bidirectional_attention": True, "sliding_window": WINDOW, "num_hidden_layers": 6},
    ),
}
CAUSAL: dict[str, Family] = {
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS}),
    "gpt-neox": ("gpt_neox", {}),
    "gptj": ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": POSITIONS}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "opt-projected": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16}),
    "xglm": ("xglm", {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
    "biogpt": ("biogpt", {}),
    "llama": ("llama", HEADS),
    "mixtral": ("mixtral", {**HEADS, "num_local_experts": 4, "sliding_window": None}),
    "qwen2": ("qwen2", HEADS),
    "qwen3": ("qwen3", HEADS),
    "qwen3-moe": ("qwen3_moe", {**HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    "olmo2": ("olmo2", HEADS),
    "phi": ("phi", {}),
    "granite": ("granite", HEADS),
    "stablelm": ("stablelm", HEADS),
    "smollm3": ("smollm3", HEADS),
    "falcon": ("falcon", {"alibi": False}),
    # Sliding or chunked windows.
    "mistral": ("mistral", {**HEADS, "sliding_window": WINDOW}),
    "qwen2-window": ("qwen2", {**HEADS, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
    "phi3": ("phi3", {**HEADS, "sliding_window": WINDOW}),
    "gemma2": ("gemma2", {**HEADS, "sliding_window": WINDOW}),
    "gemma3": ("gemma3_text", {**HEADS, "sliding_window": WINDOW, "num_hidden_layers": 6}),
    "olmo3": ("olmo3", {**HEADS, "sliding_window": WINDOW, "num_hidden_layers": 4}),
    "llama4": (
        "llama4_text",
        {
            **HEADS,
            "num_hidden_layers": 4,
            "attention_chunk_size": WINDOW,
            "num_local_experts": 2,
            "intermediate_size_mlp": 64,
        },
    ),
    "gpt-oss": ("gpt_oss", {**HEADS, "sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "gpt-neo": (
        "gpt_neo",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    ),
    "modernbert-decoder": ("modernbert-decoder", {"local_attention": WINDOW, "num_hidden_layers": 4}),
    # Biases in the place of positions.
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "falcon-alibi": ("falcon", {"alibi": True}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64}),
    # Recurrent and hybrid.
    "mamba": ("mamba", STATE_SPACE),
    "mamba2": ("mamba2", {**STATE_SPACE, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8}),
    "falcon-mamba": ("falcon_mamba", STATE_SPACE),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": POSITIONS}),
    "recurrent-gemma": (
        "recurrent_gemma",
        {**HEADS, "num_hidden_layers": 3, "attention_window_size": WINDOW, "lru_width": 32},
    ),
    "jamba": (
        "jamba",
        {
            **HEADS,
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 2,
            "use_mamba_kernels": False,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
        },
    ),
    "granite-moe-hybrid": (
        "granitemoehybrid",
        {
            **HEADS,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "qwen3-next": (
        "qwen3_next",
        {
            **HEADS,
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
    "lfm2": ("lfm2", {**HEADS, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
    # Keys and values of another size; other kinds of embeddings; several parts.
    "deepseek-v3": (
        "deepseek_v3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 6,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "first_k_dense_replace": 1,
        },
    ),
    "gemma3n": (
        "gemma3n_text",
        {
            **HEADS,
            "intermediate_size": [64] * 4,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "laurel_rank": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 0,
            "activation_sparsity_pattern": [0.0] * 4,
            "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gemma3n-shared": (
        "gemma3n_text",
        {
            **HEADS,
            "intermediate_size": [64] * 4,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "laurel_rank": 8,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.5] * 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
}


def tokenizer(kind: str = "bytes", start: bool = True, pad: bool = True, length: int | None = None) -> Any:
    """A small tokenizer whose first ids are `SPECIALS`.

    Args:
        kind: "bytes" (byte-level BPE), "wordpiece" or "unigram" (as SentencePiece: a space is put before a text).
        start: puts `<s>` before a text; wordpiece `</s>` behind it too.
        pad: has a pad token.
        length: `model_max_length`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "bytes":
        vocabulary = {piece: i for i, piece in enumerate([*SPECIALS, *letters])}
        merges: list[tuple[str, str]] = []
        for word in ["".join(pair) for pair in zip(["Ġ"] * len(WORDS), WORDS, strict=True)]:
            for end in range(2, len(word) + 1):  # left to right, so every word becomes one piece
                if word[:end] not in vocabulary and len(vocabulary) < VOCABULARY:
                    vocabulary[word[:end]] = len(vocabulary)
                    merges.append((word[: end - 1], word[end - 1]))
        made = Tokenizer(models.BPE(vocabulary, merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    elif kind == "wordpiece":
        signs = [chr(i) for i in range(33, 127)]
        pieces = dict.fromkeys([*SPECIALS, *WORDS, *signs, *[f"##{sign}" for sign in signs]])
        made = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
    else:
        signs = ["▁", "\n", *[chr(i) for i in range(33, 127)]]
        scored = [*[(piece, 0.0) for piece in SPECIALS], *[(f"▁{word}", -2.0) for word in WORDS]]
        made = Tokenizer(models.Unigram([*scored, *[(sign, -6.0) for sign in signs]], unk_id=3))
        made.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
    if start:
        form = "<s> $A </s>" if kind == "wordpiece" else "<s> $A"
        made.post_processor = processors.TemplateProcessing(single=form, special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} if start else {"eos_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        **names,
        **({"pad_token": "<pad>"} if pad else {}),
        **({"model_max_length": length} if length else {}),
    )


def config(family: str, **changes: Any) -> PretrainedConfig:
    """The configuration of a family, with `changes`."""
    kind, differing = {**ENCODERS, **CAUSAL}[family]
    settings = {key: value for key, value in {**COMMON, **differing, **changes}.items() if value is not LEFT_OUT}
    found: PretrainedConfig = CONFIG_MAPPING[kind](**settings)
    return found


def model(family: str, **changes: Any) -> PreTrainedModel:
    """A random model of that configuration, float32."""
    causal = family in CAUSAL
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = (AutoModelForCausalLM if causal else AutoModel).from_config(config(family, **changes))
        with torch.no_grad():
            for weight in made.parameters():
                if weight.ndim > 1:  # wider than is usual: attention then depends on what it sees
                    weight.normal_(0, 0.3)
                else:  # what begins at zero would hide what it scales
                    weight.add_(0.1 * torch.randn_like(weight))
    return made.eval().float()


def make(folder: Path, family: str, tokens: PreTrainedTokenizerBase | None = None, **changes: Any) -> Path:
    """Save a random model of the family and a tokenizer (`tokenizer()` where none is given) into `folder`."""
    model(family, **changes).save_pretrained(folder)
    (tokenizer("wordpiece" if family in ENCODERS else "bytes") if tokens is None else tokens).save_pretrained(folder)
    return folder
