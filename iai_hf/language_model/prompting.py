"""Prompts: how examples, queries and answers are worded, and how a language model is asked under a condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from iai_hf.backbones import Backbone
from iai_hf.config import APART, require
from iai_hf.errors import BackboneError
from iai_hf.language_model.answers import element, escape, unescape

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


class Question(NamedTuple):
    """A query, what may answer it, and the place of its condition among several.

    Attributes:
        written: labels of a set that stand in the answer already; next is one of `answers`, or the end. None where one
            of them is the answer.
    """

    text: str
    answers: tuple[str, ...]
    adapter_index: int = 0
    written: tuple[str, ...] | None = None


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

    @cached_property
    def query_prefix(self) -> tuple[int, ...]:
        """Tokens that every query begins with."""
        return self.model.tokens(self.config.input_label)

    @cached_property
    def query_end(self) -> tuple[int, ...]:
        """Tokens that every query ends with."""
        return self.model.tokens(f"{STOP}{self.config.output_label}")

    @cached_property
    def blank_line(self) -> tuple[int, ...]:
        """Tokens between a demonstration and what follows."""
        return self.model.tokens(STOP)

    def query(self, text: str) -> tuple[tuple[int, ...], bool]:
        """Tokens up to where the answer starts, and whether the text was cut at `max_tokens`."""
        body = self.model.tokens(f" {text}")
        limit = self.config.max_tokens
        return self.query_prefix + body[:limit] + self.query_end, limit is not None and len(body) > limit

    def answer(self, output: str | tuple[str, ...]) -> tuple[int, ...]:
        """Tokens of an answer with its end; of a set, labels are in the order that they are given in."""
        if isinstance(output, str):
            return self.model.texts.line(f" {escape(output)}")
        return (*self.elements(output), *self.model.texts.line(""))

    def elements(self, labels: Sequence[str]) -> tuple[int, ...]:
        """Tokens of labels of a set, one after the other."""
        return tuple(token for label in labels for token in self.model.tokens(f" {element(label)}"))

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

    def demonstration(self, text: str, output: str | tuple[str, ...]) -> tuple[tuple[int, ...], bool]:
        """Tokens of a solved example, and whether its text was cut."""
        query, cut = self.query(text)
        return query + self.answer(output) + self.blank_line, cut

    def row(self, text: str, answers: Sequence[str | tuple[str, ...]] = (), adapter_index: int = 0) -> Row:
        """A query with candidate answers."""
        from iai_hf.backbones.packing import Row

        return Row(self.query(text)[0], tuple(self.answer(answer) for answer in answers), adapter_index)

    def asked(self, question: Question) -> Row:
        """The row of a question; where a set is written, the last candidate is its end."""
        from iai_hf.backbones.packing import Row

        if question.written is None:
            return self.row(question.text, question.answers, question.adapter_index)
        candidates = (*(self.elements([label]) for label in question.answers), self.answer(()))
        return Row(self.query(question.text)[0] + self.elements(question.written), candidates, question.adapter_index)

    def scores(self, condition: Condition, questions: Sequence[Question]) -> list[torch.Tensor]:
        """Scores of each question's candidates, float32 `[candidates]` a question, calibrated where that is set."""
        scores = self.model.score(condition, [self.asked(question) for question in questions])
        if not self.config.calibrate:
            return scores
        free = [question._replace(text=CONTENT_FREE) for question in questions]
        each = list(dict.fromkeys(free))
        base = dict(zip(each, self.model.score(condition, [self.asked(question) for question in each]), strict=True))
        return [found - base[question] for found, question in zip(scores, free, strict=True)]

    def generate(self, condition: Condition, queries: Sequence[Row], sampling: Sampling | None = None) -> list[str]:
        """Answers in free text, up to the end of their line."""
        lines = self.model.generate(condition, queries, self.config.max_new_tokens, STOP, sampling)
        return [unescape(line) for line in lines]
