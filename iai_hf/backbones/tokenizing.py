"""TextTokenizer: texts to token ids and back, for all that a backbone reads. Nothing in a text is a command."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from iai_hf.threads import Lock

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACES = string.whitespace  # cut off around a generated answer; others are the answer's own


class TextTokenizer:
    """A tokenizer that takes texts as data: the name of a control token in a text is read as the signs it is made of.

    Special tokens come into what a model reads by their ids alone, never from a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self._lock = tokenizer, Lock()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""
        # No mask and no segments: for a short query their making is a measurable part of all the work.
        plain = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        with self._lock:  # a fast tokenizer holds settings that a call may change
            found = self.tokenizer(list(texts), verbose=False, split_special_tokens=True, **plain)["input_ids"]
        return [ids if self._spelt.keys().isdisjoint(ids) else self._spell(ids) for ids in found]

    def piece(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece in the middle of a text.

        SentencePiece begins every text with a space; a piece is read behind something else, so that it gets none.
        """
        if not self._joins:
            anchor = "a" if text[:1].isspace() else "\n"
            before, whole = self.ids([anchor, anchor + text])
            if before and whole[: len(before)] == before:
                return tuple(whole[len(before) :])
        return tuple(self.ids([text])[0])

    def line(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece that ends its line; where the tokenizer drops newlines, end-of-text ends it."""
        return self.piece(f"{text}\n") if self._keeps_lines else (*self.piece(text), *self._line_end)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids as it is, special tokens left out."""
        text: Any = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def until(self, ids: Sequence[int], stop: str) -> str:
        """The text of generated ids up to `stop`, without `SPACES` around it."""
        return self.text(ids).split(stop)[0].strip(SPACES)

    def holding(self, sign: str) -> frozenset[int]:
        """All ids with `sign` in their text."""
        if sign not in self._holding:
            pieces = self._pieces
            # What the vocabulary writes for the sign; only pieces with that are decoded, which is slow.
            marks = {sign} | {pieces[i] for i in self.ids([sign])[0] if sign in self.text([i])}
            likely = [i for i, piece in enumerate(pieces) if any(mark in piece for mark in marks)]
            self._holding[sign] = frozenset(i for i in likely if sign in self.text([i]))
        return self._holding[sign]

    @cached_property
    def _holding(self) -> dict[str, frozenset[int]]:
        return {}

    @cached_property
    def _pieces(self) -> list[str]:
        """The vocabulary as it is written; empty where an id has none."""
        pieces: Any = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))
        return [piece or "" for piece in pieces]

    @cached_property
    def _joins(self) -> bool:
        """Whether pieces, tokenised each by itself, make up the whole."""
        return all(
            whole == [*left, *right] for whole, left, right in (self.ids(["a" + b, "a", b]) for b in (" a", "\na"))
        )

    @cached_property
    def _keeps_lines(self) -> bool:
        return self.text(self.piece(" a\n")).endswith("\n")

    @cached_property
    def _line_end(self) -> tuple[int, ...]:
        """The newline from between two words; where that is dropped too, the token that ends a text."""
        between = tuple(i for i in self.ids(["a\na"])[0] if "\n" in self.text([i]))
        end: Any = self.tokenizer.eos_token_id
        return between or (() if end is None else (int(end),))

    @cached_property
    def _spelt(self) -> dict[int, list[int]]:
        """The signs of each control token. Vocabularies that hold these as words would read them so."""
        added = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        unknown = self.tokenizer.unk_token_id  # stands for signs outside the vocabulary
        spelt = {}
        for control in {*added, *self.tokenizer.all_special_ids} - {unknown}:
            name: Any = self.tokenizer.convert_ids_to_tokens(control)
            signs: Any = self.tokenizer.convert_tokens_to_ids(list(str(name)))
            spelt[control] = [sign for sign in signs if sign is not None]
        return spelt

    def _spell(self, ids: Sequence[int]) -> list[int]:
        return [sign for i in ids for sign in self._spelt.get(i, (i,))]


def shared_length(prompt: Sequence[int], text: Sequence[int]) -> int:
    """How many ids both begin with."""
    pairs = enumerate(zip(prompt, text, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(prompt), len(text)))
