"""LinearClassifier: a text encoder and a linear map of its features, in the forms that other libraries load."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.backbones.batching import padded
from iai_hf.backbones.self_test import LOGIT_TOLERANCE, alike, last_hidden_state
from iai_hf.backbones.standardizing import SAMPLE
from iai_hf.errors import BackboneError

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.backbone import Backbone

# As `transformers` calls them: logits become probabilities by a softmax, or each by a sigmoid.
ONE_LABEL, SEVERAL_LABELS = "single_label_classification", "multi_label_classification"
THRESHOLDS = "label_thresholds"  # in the model's configuration: logits above which labels apply


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """logits = features @ weight.T + bias, one encoder and one text at a time.

    Attributes:
        backbone: the encoder, all weights merged.
        weight, bias: float32 `[C, hidden_size]` and `[C]`.
        labels: in the order of the rows.
        max_tokens: read of a text; None reads all of it.
        origin: what it was made from, in words.
        thresholds: logits `[C]` above which labels apply, where a text has any number of them.
    """

    backbone: Backbone
    weight: torch.Tensor
    bias: torch.Tensor
    labels: Sequence[str]
    max_tokens: int | None = None
    origin: str = ""
    thresholds: torch.Tensor | None = None

    @property
    def prompt_ids(self) -> list[int]:
        """What every text is read behind, special tokens left out."""
        prompt = self.backbone.pipeline.prompt
        return self.backbone.read([prompt])[0] if prompt else []

    @property
    def max_seq_length(self) -> int:
        """Tokens, special ones and the prompt included, at which other libraries cut a text."""
        if self.max_tokens is None:
            return self.backbone.window
        start, end = self.backbone.special_tokens
        return min(self.backbone.window, len(start) + len(self.prompt_ids) + self.max_tokens + len(end))

    @property
    def reads_in_windows(self) -> bool:
        """Whether the state reads on where other libraries cut."""
        return self.max_tokens is None or self.max_seq_length == self.backbone.window

    def module(self) -> torch.nn.Module:
        """One graph in float32: `input_ids`, `attention_mask`, int64 `[texts, tokens]`, padded on the right, to logits.

        Logits are float32 `[texts, C]`.

        Raises:
            BackboneError: they are others than those of the backbone's features.
        """
        import torch

        backbone, longest = self.backbone, self.max_seq_length
        module = _graph(self)
        texts = [text for text in SAMPLE if not self.reads_in_windows or len(self._sequences([text])[0]) < longest]
        ids, mask = self.batch(texts[::8] or ["a"])
        with torch.inference_mode():
            found = module(ids, mask)
            features = backbone.features(texts[::8] or ["a"], self.max_tokens).vectors
            expected = torch.nn.functional.linear(features, self.weight, self.bias)
        if not alike(found.to(backbone.dtype), expected.to(backbone.dtype), LOGIT_TOLERANCE):
            raise BackboneError(
                f"{backbone.name} gives other features where texts of several lengths are padded and read together, as "
                "other libraries do; keep the state as it is, or adapt on another encoder"
            )
        return module

    def batch(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """`input_ids` and `attention_mask` of texts."""
        import torch

        ids, mask = padded(self._sequences(texts), self.backbone.pad_id, torch.device("cpu"))
        return ids, torch.ones_like(ids) if mask is None else mask

    def describe(self, folder: Path) -> None:
        """Add the labels' names to a model's `config.json`, where all libraries look for them."""
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["id2label"] = {str(number): label for number, label in enumerate(self.labels)}
        config["label2id"] = {label: number for number, label in enumerate(self.labels)}
        config["problem_type"] = ONE_LABEL if self.thresholds is None else SEVERAL_LABELS
        if self.thresholds is not None:
            config[THRESHOLDS] = self.thresholds.tolist()
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def save_tokenizer(self, folder: Path) -> None:
        """Save the tokenizer so that it reads a text as the backbone does, by default.

        Raises:
            BackboneError: it has no token to pad with, or reads texts otherwise when it is loaded.
        """
        from transformers import AutoTokenizer

        tokenizer: Any = self.backbone.tokenizer
        pad = tokenizer.pad_token or tokenizer.eos_token
        if pad is None:
            raise BackboneError(
                f"the tokenizer of {self.backbone.name} has no token to pad with, so that texts of several lengths "
                "can't be read together; give it one (pad_token in tokenizer_config.json)"
            )
        tokenizer.save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        settings = {
            **json.loads(path.read_text(encoding="utf-8")),
            "pad_token": pad,
            "padding_side": "right",
            "truncation_side": "right",
            "model_max_length": self.max_seq_length,
            "split_special_tokens": True,  # "[SEP]" in a text is read as text
        }
        end = self.backbone.special_tokens[1]
        if end and end[-1] not in tokenizer.all_special_ids:  # it would be counted as the prompt's last token
            settings["sep_token"] = tokenizer.convert_ids_to_tokens(end[-1])
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        saved = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        pipeline = self.backbone.pipeline
        texts = [pipeline.prompt + text for text in SAMPLE]
        texts = [text.lower() for text in texts] if pipeline.lowercase else texts
        if saved(texts, truncation=True)["input_ids"] != self._sequences(SAMPLE):
            raise BackboneError(
                f"the tokenizer of {self.backbone.name} reads texts otherwise once it is saved and loaded, so that the "
                "model would not answer as the state; keep the state as it is"
            )

    def _sequences(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens that other libraries read of texts."""
        start, end = self.backbone.special_tokens
        room = self.max_seq_length - len(start) - len(end)
        read = self.backbone.read([self.backbone.pipeline.prompt + text for text in texts])
        return [[*start, *ids[:room], *end] for ids in read]


def _graph(classifier: LinearClassifier) -> torch.nn.Module:
    import torch
    from torch.nn.functional import linear, normalize

    backbone = classifier.backbone
    before = len(backbone.special_tokens[0]) + len(classifier.prompt_ids)
    model = backbone.model
    if model.dtype != torch.float32 or backbone.device.type != "cpu":
        model = copy.deepcopy(model).to("cpu", torch.float32)

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.weight = torch.nn.Parameter(classifier.weight, requires_grad=False)
            self.bias = torch.nn.Parameter(classifier.bias, requires_grad=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = last_hidden_state(self.model(input_ids=input_ids, attention_mask=attention_mask))
            pooled = backbone.pipeline.pool(hidden, attention_mask, before)
            return linear(normalize(backbone.pipeline.finish(pooled), dim=-1), self.weight, self.bias)

    return Graph().eval()
