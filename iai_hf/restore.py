"""The amortizer that made a state, rebuilt on its backbone from the state's header."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from iai_hf import hub, shipped
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.config import plain, read_stored
from iai_hf.errors import ConfigError
from iai_hf.header import StateHeader
from iai_hf.methods import registered


class Stated(Protocol):
    """What is needed of a state."""

    @property
    def header(self) -> StateHeader:
        """Of the state."""


_KEPT: WeakKeyDictionary[Stated, tuple[Any, Any, Any]] = WeakKeyDictionary()  # settings, places, and their amortizer
_LOADING = threading.RLock()  # so that threads that ask one state first load its backbone once


def restore(
    state: Stated,
    backbone: str | Backbone | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    **given: Any,
) -> Any:
    """The amortizer; see `AutoAmortizer.for_state`. `given`: `weights` and `adapter`, and what is for loading."""
    header = state.header
    cls = registered(header.method)
    changed = plain(cls.config_class, config or {})
    read_stored(cls.config_class, {**header.config, **changed})  # so that a key or value that is none is told as such
    fixed = sorted(set(config or ()) - set(cls.answer_settings))
    if fixed:
        free = ", ".join(cls.answer_settings) or "none"
        raise ConfigError(
            f"{', '.join(fixed)} is what a state of {header.method!r} is made with; what can be changed for a "
            f"state that stands: {free}. Adapt anew with other settings"
        )
    moved = {key: given[key] for key in shipped.WHENCE if given.get(key) is not None}
    loading = {key: value for key, value in given.items() if key not in shipped.WHENCE}
    if backbone is None and loading.get("revision") is None:
        loading["revision"] = header.backbone_revision
    downloading = {key: value for key, value in loading.items() if key in hub.DOWNLOADING}
    settings = located({**header.config, **changed, **moved}, downloading)
    chosen = backbone or header.backbone
    loaded = load_backbone(chosen, **loading) if isinstance(chosen, str) else chosen
    amortizer = cls(loaded, read_stored(cls.config_class, settings))
    amortizer.check(state)
    return amortizer


def kept(state: Stated, config: Mapping[str, Any] | None, loading: Mapping[str, Any]) -> Any:
    """As `restore`, from call to call the same one while the state lives; asked otherwise, it is made anew."""
    with _LOADING:
        made = _KEPT.get(state)
        if made is None or made[:2] != (config, loading):
            standing = {"backbone": made[2].backbone.plain} if made is not None and made[1] == loading else {}
            made = _KEPT[state] = (config, loading, restore(state, config=config, **{**loading, **standing}))
    return made[2]


def located(settings: Mapping[str, Any], downloading: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the folders of learned weights, fetched as everything else is, so that they load from there."""
    plain = {key: value for key, value in downloading.items() if key != "revision"}
    found = dict(settings)
    for key, file in shipped.WHENCE.items():
        source = settings.get(key)
        if isinstance(source, str) and source != shipped.AUTO:
            found[key] = str(shipped.locate(source, file, **plain).folder)
    return found
