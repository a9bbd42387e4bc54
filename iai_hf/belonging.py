"""Whether a state belongs to an amortizer: made by its method, its settings and its backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from iai_hf import shipped
from iai_hf.config import current_names, first_names
from iai_hf.errors import StateError
from iai_hf.state import TaskState


def check_belongs(amortizer: Any, state: Any) -> None:
    """Raise StateError where `state` was made by another method, configuration or backbone, or is none."""
    if not isinstance(state, TaskState):
        raise StateError(f"got a {type(state).__name__} for a state; expected a TaskState, as `adapt` returns")
    header = state.header
    if header.method != amortizer.method:
        raise StateError(
            f"the state was made by {header.method!r}, not {amortizer.method!r}; load it with its own method"
        )
    ours = amortizer.settings_with(header.config)
    theirs = current_names(amortizer.config_class, header.config)
    other = {key: value for key, value in theirs.items() if ours.get(key) != value}
    if not amortizer.backbone.has_fingerprint(header.backbone_fingerprint, earlier=not header.backbone_source):
        same = (header.backbone, header.backbone_source) == (amortizer.backbone.name, amortizer.backbone.source)
        if same and other:
            raise StateError(
                f"the state was made on other features of {header.backbone!r}, with {_told(other)}; here it is "
                f"{_told({key: ours.get(key) for key in other})}: give the state's settings, or adapt anew"
            )
        made_on = _weights(header.backbone_fingerprint, header.backbone_source)
        this = _weights(amortizer.backbone.fingerprint, amortizer.backbone.source)
        raise StateError(
            f"the state belongs to backbone {header.backbone!r} ({made_on}), this is {amortizer.backbone.name!r} "
            f"({this}); load that one, or adapt anew",
            options=("backbone", "revision"),
        )
    # Those of older states cover all settings.
    if header.amortizer not in (amortizer.fingerprint, amortizer.digest(first_names(amortizer.config_class, ours))):
        other = {key: value for key, value in other.items() if key not in shipped.WHENCE}
        if not other and header.weights_digest != amortizer.weights_digest:
            raise StateError(
                f"the state belongs to weights {header.config.get('weights')!r} "
                f"({str(header.weights_digest)[:8]}), these are {ours.get('weights')!r} "
                f"({str(amortizer.weights_digest)[:8]}); give those, or adapt anew",
                options=("weights",),
            )
        made_with = f"its digest is {header.amortizer[:8]}, not {amortizer.fingerprint[:8]}"
        if other:
            made_with = f"{_told(other)} there, {_told({key: ours.get(key) for key in other})} here"
        raise StateError(
            f"the state was made with another configuration of {amortizer.method!r}: {made_with}; settings of a state "
            "that stands can't be changed, so leave them out, or adapt anew"
        )


def _told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in settings.items())


def _weights(fingerprint: str, source: str) -> str:
    """Which weights these are, in a few words."""
    return fingerprint[:8] + (f" of {source}" if source else "")
