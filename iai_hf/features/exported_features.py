"""Amortizers on features whose states leave as other libraries' models: their head is a linear map of the features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypeVar

from iai_hf.backbones.linear_classifier import LinearClassifier
from iai_hf.errors import BackboneError, ConfigError
from iai_hf.features.adapted_features import AdaptedFeatures, AdaptedFeaturesConfig, Prepared
from iai_hf.features.peft_export import write_classifier
from iai_hf.features.watched import changed
from iai_hf.methods import check_one_label
from iai_hf.task import TaskSpec, Tensors

if TYPE_CHECKING:
    import torch

    from iai_hf.state import TaskState

Config = TypeVar("Config", bound=AdaptedFeaturesConfig, default=Any)


class ExportedFeatures(AdaptedFeatures[Config]):
    """Base class: a subclass's head is linear."""

    def export_peft(self, tensors: Tensors, task: TaskSpec, directory: Path) -> None:
        """See `iai_hf.features.peft_export`."""
        instead = "export it as sentence-transformers or onnx, which several labels have"
        check_one_label(task, "a PEFT export, which is of weights under a depth,", instead)
        prepared = self.prepare(tensors, task) if self.config.depth else None
        weights = [self.feature_adapter.low_rank] if self.feature_adapter is not None else []
        if prepared is None or prepared.low_rank is None:
            reason = "with depth 0 has no weights of its own in the backbone"
            if prepared is not None:
                reason = "whose frozen features are ahead does not use its weights in the backbone yet"
            raise ConfigError(
                f"a state of {self.method!r} {reason}, so it has no PEFT form; adapt with depth, on more examples, "
                "or with a lower learning_rate"
            )
        weight, bias = self._linear_map(prepared, task)
        plain, added = self.backbone.plain.uncached, [*weights, prepared.low_rank]
        max_tokens = self.config.max_tokens
        write_classifier(plain, self.backbone, added, weight, bias, task.labels, max_tokens, directory)

    def linear_classifier(self, state: TaskState) -> LinearClassifier:
        """As `Amortizer.linear_classifier`, with the weights that answer merged and projections folded in.

        Raises:
            BackboneError: the backbone is a causal language model, whose features are no other library's.
            DataError: fewer than two labels are known.
            ConfigError: several forecasts answer, as after a change.
        """
        if changed(state.tensors):
            raise ConfigError(
                "behind a change several forecasts answer together, which is no linear map; adapt a state on the "
                "examples since the change, and export that"
            )
        if self.backbone.reading["hidden_state"] != "last":
            raise BackboneError(
                f"features of {self.backbone.name} come from the middle of a causal language model, behind a question, "
                "which no sentence-transformers module reads; adapt on an encoder, or keep the state as it is"
            )
        prepared = self.prepared(state)
        if not isinstance(prepared, Prepared):
            prepared = Prepared(prepared, self.backbone, None, 1.0)
        weight, bias = self._linear_map(prepared, state.task)
        thresholds = prepared.head.thresholds if state.task.kind == "multi-label" else None
        origin = f"a task state of `{self.method}` after {state.header.examples:,} examples"
        encoder = prepared.backbone.uncached
        return LinearClassifier(encoder, weight, bias, state.task.labels, self.config.max_tokens, origin, thresholds)

    def _linear_map(self, prepared: Prepared, task: TaskSpec) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the backbone's features to logits: weight `[C, hidden_size]` and bias `[C]`."""
        import torch

        head, units = self.head_of(task), torch.eye(self.backbone.hidden_size, dtype=torch.float32)
        with torch.no_grad():  # the head is linear, so that it is known from these
            bias = head.logits(prepared.head, self.projected(0 * units[:1]))[0]
            weight = (head.logits(prepared.head, self.projected(units)) - bias).T
        return prepared.factor * weight, prepared.factor * bias
