"""StatePipeline: a task state as a `transformers` pipeline, so that code written for one takes a state as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import Pipeline
from transformers.utils import ModelOutput

from iai_hf.errors import DataError

if TYPE_CHECKING:
    from iai_hf.amortizer import Amortizer
    from iai_hf.state import TaskState


class StatePipeline(Pipeline):
    """Answers texts in the form of `text-classification` (`label`, `score`) or `text-generation` (`generated_text`).

    One text, a list, a generator or a dataset's column; `batch_size` and `top_k` as in transformers.

    Args:
        state: of a task of texts.
        amortizer: the one that made it; by default it is loaded, on its backbone.
        options: of `transformers.Pipeline`, e.g. `batch_size`.

    Raises:
        DataError: the state reads a table of numbers.
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
        super().__init__(backbone.model, tokenizer=tokenizer, device=backbone.device, **options)

    def _sanitize_parameters(self, **parameters: Any) -> tuple[dict, dict, dict]:
        unknown = sorted(set(parameters) - {"top_k"})
        if unknown:
            raise DataError(f"a state's pipeline has no parameter {', '.join(unknown)}; expected top_k or batch_size")
        return {}, {}, parameters

    def preprocess(self, input_: Any, **parameters: Any) -> dict[str, Any]:
        """The text as it is; the amortizer tokenises."""
        return {"text": input_}

    def _forward(self, input_tensors: dict[str, Any], **parameters: Any) -> ModelOutput:
        text = input_tensors["text"]
        prediction = self.amortizer.predict(self.state, [text] if isinstance(text, str) else list(text))
        rows = [prediction.row(number) for number in range(len(prediction.outputs))]
        return ModelOutput(prediction=rows[0] if isinstance(text, str) else rows)

    def postprocess(self, model_outputs: ModelOutput, **parameters: Any) -> Any:
        """A dictionary an answer, the likeliest first; with `top_k` other than 1, a list of them a text."""
        top_k = parameters.get("top_k", 1)
        found = model_outputs["prediction"]
        prediction = found[0] if isinstance(found, list) else found
        if prediction.log_probs is None:
            return [{"generated_text": prediction.outputs[0]}]
        scores = prediction.log_probs[0].exp()
        order = scores.argsort(descending=True).tolist()[:top_k]
        answers = [{"label": prediction.labels[i], "score": float(scores[i])} for i in order]
        return answers[0] if top_k == 1 else answers
