"""Prompts: how examples, queries and answers are worded, and how a language model is asked under a condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iai_hf.backbones import Backbone
from iai_hf.config import APART, require
from iai_hf.errors import BackboneError
from iai_hf.language_model.answers import escape, unescape

if TYPE_CHECKING:
    import torch

    from iai_hf.backbones.causal_lm import CausalLM
    from iai_hf.backbones.conditions import Condition, Sampling
    from iai_hf.backbones.packing import Row

CONTENT_FREE = "N/A"
STOP = "\n"  # ends an answer, see `TextTokenizer.line`


@dataclass(frozen=True)
class PromptConfig:
    """Settings that all prompting methods share.

    Attributes:
        max_tokens: read only so many tokens of an input; None reads all of it.
        input_label, output_label: the words before an input and before its answer.
        calibrate: contextual calibration (arXiv 2102.09690): divide by the probabilities after a content-free input.
        max_new_tokens: longest generated answer. It and `calibrate` can be changed for a state that stands.
    """

    max_tokens: int | None = field(default=None, metadata=APART)
    input_label: str = "Input:"
    output_label: str = "Output:"
    calibrate: bool = field(default=False, metadata=APART)
    max_new_tokens: int = field(default=32, metadata=APART)

    def __post_init__(self) -> None:
        require(self.max_tokens is None or self.max_tokens > 0, f"max_tokens is {self.max_tokens}; expected 1 or more")
        require(self.max_new_tokens > 0, f"max_new_tokens is {self.max_new_tokens}; expected 1 or more")


class Prompter:
    """Words prompts for one language model under one configuration."""

    def __init__(self, backbone: Backbone, config: PromptConfig) -> None:
        from iai_hf.backbones.causal_lm import CausalLM

        if not isinstance(backbone, CausalLM):
            raise BackboneError(
                f"{backbone.name} is an encoder; this method needs a causal language model, e.g. "
                "HuggingFaceTB/SmolLM2-135M-Instruct",
                options=("backbone",),
            )
        self.model: CausalLM = backbone
        self.config = config

    @property
    def query_prefix(self) -> tuple[int, ...]:
        """Tokens that every query begins with."""
        return self.model.tokens(self.config.input_label)

    def query(self, text: str) -> tuple[tuple[int, ...], bool]:
        """Tokens up to where the answer starts, and whether the text was cut at `max_tokens`."""
        body = self.model.tokens(f" {text}")
        limit = self.config.max_tokens
        tail = self.model.tokens(f"{STOP}{self.config.output_label}")
        return self.query_prefix + body[:limit] + tail, limit is not None and len(body) > limit

    def answer(self, text: str) -> tuple[int, ...]:
        """Tokens of an answer with its end."""
        return self.model.texts.line(f" {escape(text)}")

    def decode_answer(self, tokens: Sequence[int]) -> str:
        """The output that generated tokens are, up to the end of their line."""
        return unescape(self.model.texts.until(tokens, STOP))

    def unanswerable(self, outputs: Sequence[str]) -> tuple[list[str], list[str]]:
        """Outputs longer than `max_new_tokens`, and those that the tokenizer can't write: neither can be an answer."""
        cut, changed = [], []
        for output in outputs:
            tokens = self.answer(output)
            if self.decode_answer(tokens) != output:
                changed.append(output)
            elif self.decode_answer(tokens[: self.config.max_new_tokens]) != output:
                cut.append(output)
        return cut, changed

    def demonstration(self, text: str, output: str) -> tuple[tuple[int, ...], bool]:
        """Tokens of a solved example, and whether its text was cut."""
        query, cut = self.query(text)
        return query + self.answer(output) + self.model.tokens(STOP), cut

    def row(self, text: str, answers: Sequence[str] = (), adapter_index: int = 0) -> Row:
        """A query with candidate answers."""
        from iai_hf.backbones.packing import Row

        return Row(self.query(text)[0], tuple(self.answer(answer) for answer in answers), adapter_index)

    def scores(
        self, condition: Condition, labels: Sequence[Sequence[str]], queries: Sequence[Row]
    ) -> list[torch.Tensor]:
        """Scores of each query's own labels, float32 `[labels]` a query, calibrated where that is set."""
        scores = self.model.score(condition, queries)
        if not self.config.calibrate:
            return scores
        asked = dict.fromkeys((row.adapter_index, tuple(names)) for row, names in zip(queries, labels, strict=True))
        empty = self.model.score(condition, [self.row(CONTENT_FREE, names, index) for index, names in asked])
        base = dict(zip(asked, empty, strict=True))
        return [
            found - base[row.adapter_index, tuple(names)]
            for found, row, names in zip(scores, queries, labels, strict=True)
        ]

    def generate(self, condition: Condition, queries: Sequence[Row], sampling: Sampling | None = None) -> list[str]:
        """Answers in free text, up to the end of their line."""
        lines = self.model.generate(condition, queries, self.config.max_new_tokens, STOP, sampling)
        return [unescape(line) for line in lines]
