"""StatePipeline: a task state as a `transformers` pipeline, so that code written for one takes a state as it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset
from transformers import Pipeline
from transformers.utils import ModelOutput

from iai_hf import values
from iai_hf.config import whole_number
from iai_hf.errors import DataError

if TYPE_CHECKING:
    from iai_hf.amortizer import Amortizer
    from iai_hf.state import TaskState
    from iai_hf.task import Prediction

PARAMETERS = {"top_k", "truncation", "max_length"}


class StatePipeline(Pipeline):
    """Answers texts in the form of `text-classification` (`label`, `score`) or `text-generation` (`generated_text`).

    A text is a string or `{"text": ...}`. Any sequence of them (a list, a column of a frame or a dataset) gets a list
    of answers; a generator or a torch dataset an iterator. As in transformers, an answer is a dictionary, or with
    `top_k` a list of them, the likeliest first; and where `top_k` is not asked for, a single string gets a list too.

    Args:
        state: of a task of texts.
        amortizer: the one that made it; by default it is loaded, on its backbone.
        options: of `transformers.Pipeline`, e.g. `batch_size`; and `top_k` (None for all labels), `truncation` (read
            only what the backbone's context holds) and `max_length` (or only so many tokens), here or at a call.

    Raises:
        DataError: the state reads a table of numbers; a parameter is not known; what is asked is no text.
        StateError: the state is another amortizer's.
    """

    def __init__(self, state: TaskState, amortizer: Amortizer | None = None, **options: Any) -> None:
        from iai_hf.auto import AutoAmortizer

        if state.task.columns:
            raise DataError("a pipeline answers texts, the state reads a table of numbers; use state.predict(rows)")
        self.amortizer = amortizer or AutoAmortizer.for_state(state)
        self.amortizer.check(state)
        self.state = state
        backbone = self.amortizer.backbone
        tokenizer: Any = backbone.tokenizer
        spread = getattr(backbone.model, "hf_device_map", None) is not None  # then transformers refuses a device
        super().__init__(backbone.model, tokenizer=tokenizer, device=None if spread else backbone.device, **options)

    def __call__(
        self, inputs: Any, *args: Any, num_workers: int | None = None, batch_size: int | None = None, **parameters: Any
    ) -> Any:
        """Answers to one text or to many; see the class."""
        reading, _, form = self._sanitize_parameters(**parameters)
        reading, form = {**self._preprocess_params, **reading}, {**self._postprocess_params, **form}
        if isinstance(inputs, (str, dict)):
            answer = self.run_single(inputs, reading, {}, form)
            # The odd case of transformers: without `top_k` at the call one string still gets a list.
            return [answer] if isinstance(inputs, str) and self._classifies and "top_k" not in parameters else answer
        size = whole_number("batch_size", batch_size or self._batch_size or 1, at_least=1)
        if isinstance(inputs, Dataset):
            rows: Any = inputs
            return self._answers((rows[number] for number in range(len(rows))), size, reading, form)
        if isinstance(inputs, Iterator):
            return self._answers(inputs, size, reading, form)
        found = values.column(inputs, "queries") if values.names_of(inputs) is None else values.texts(inputs)
        if not found:
            raise DataError("queries: there are none; expected at least one text")
        return list(self._answers(found, size, reading, form))

    def _answers(
        self, inputs: Iterable[Any], size: int, reading: dict[str, Any], form: dict[str, Any]
    ) -> Iterator[Any]:
        """An answer an input, `size` of them at a time."""
        numbered = enumerate(inputs)
        while batch := list(itertools.islice(numbered, size)):
            texts = [self.preprocess(given, **reading, number=number)["text"] for number, given in batch]
            for row in self.forward({"text": texts})["predictions"]:
                yield self.postprocess({"predictions": [row]}, **form)

    @property
    def _classifies(self) -> bool:
        return self.state.task.kind == "classification"

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        unknown = sorted(set(parameters) - PARAMETERS)
        if unknown:
            raise DataError(
                f"a state's pipeline has no parameter {', '.join(unknown)}; expected batch_size, "
                f"{', '.join(sorted(PARAMETERS))}"
            )
        top_k = parameters.get("top_k")
        if top_k is not None:
            parameters["top_k"] = whole_number("top_k", top_k, at_least=1)
        form = {key: value for key, value in parameters.items() if key == "top_k"}
        return {key: value for key, value in parameters.items() if key != "top_k"}, {}, form

    def preprocess(self, input_: Any, **parameters: Any) -> dict[str, Any]:
        """The text, cut where that is asked for; the amortizer tokenises."""
        number, max_length = parameters.get("number", 0), parameters.get("max_length")
        if isinstance(input_, dict):
            if set(input_) != {"text"}:
                raise DataError(
                    f"query {number} has the keys {', '.join(map(str, input_))}; expected 'text' alone: a state reads "
                    "one text, so join a pair as it was joined in the examples"
                )
            input_ = input_["text"]
        text = values.text(input_, f"query {number}")
        if max_length is None and parameters.get("truncation") in (None, False, "do_not_truncate"):
            return {"text": text}
        return {"text": self._cut(text, max_length)}

    def _cut(self, text: str, max_length: int | None) -> str:
        """What the first `max_length` tokens, special ones included, stand for."""
        backbone, tokenizer = self.amortizer.backbone, self.tokenizer
        limit = backbone.context
        if max_length is not None:
            limit = min(limit, whole_number("max_length", max_length, at_least=1))
        if tokenizer is None or not tokenizer.is_fast:
            raise DataError(f"the tokenizer of {backbone.name} does not tell where a token ends; cut the texts before")
        plain = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        ends = [end for _, end in tokenizer(text, return_offsets_mapping=True, **plain)["offset_mapping"]]
        room = limit - sum(map(len, backbone.special_tokens))
        if len(ends) <= room:
            return text
        if room < 1 or not text[: ends[room - 1]].strip():
            raise DataError(f"{limit} tokens, special ones included, hold nothing of {text[:40]!r}; expected more")
        return text[: ends[room - 1]]

    def _forward(self, input_tensors: dict[str, Any], **parameters: Any) -> ModelOutput:
        texts = [input_tensors["text"]] if isinstance(input_tensors["text"], str) else input_tensors["text"]
        prediction = self.amortizer.predict(self.state, texts)
        return ModelOutput(predictions=[prediction.row(number) for number in range(len(texts))])

    def postprocess(self, model_outputs: Any, **parameters: Any) -> Any:
        """The answer as a dictionary, or where `top_k` is given a list of them, the likeliest first.

        Where several labels may apply it is the list of those that do, or of `top_k`, each with its own probability.
        """
        prediction: Prediction = model_outputs["predictions"][0]
        if prediction.probabilities is not None:
            shares = prediction.probabilities[0]
            order = shares.argsort(descending=True).tolist()
            if "top_k" not in parameters:
                order = [i for i in order if prediction.labels[i] in prediction.outputs[0]]
            found = [{"label": prediction.labels[i], "score": float(shares[i])} for i in order]
            return found[: parameters.get("top_k")]
        if prediction.log_probs is None:
            return [{"generated_text": prediction.outputs[0]}]
        scores = prediction.log_probs[0].exp()
        order = scores.argsort(descending=True).tolist()[: parameters.get("top_k", 1)]
        answers = [{"label": prediction.labels[i], "score": float(scores[i])} for i in order]
        return answers if "top_k" in parameters else answers[0]
