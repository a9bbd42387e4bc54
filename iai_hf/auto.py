"""AutoAmortizer: a method's name, a folder or a task state, to the right amortizer on the right backbone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iai_hf import hub, shipped
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.config import plain, read_config, read_stored
from iai_hf.errors import ConfigError
from iai_hf.files import CONFIG_FILE, STATE_FILE, WEIGHTS_FILE
from iai_hf.header import FORMAT_VERSION
from iai_hf.methods import methods, registered
from iai_hf.restore import located, restore
from iai_hf.state import TaskState


def amortizer_class(method: str) -> type[Amortizer]:
    """The class registered under a name.

    Raises:
        ConfigError: no such method.
    """
    return registered(method)


class AutoAmortizer:
    """Loads amortizers; not to be instantiated."""

    @staticmethod
    def from_pretrained(
        name: str | Path,
        *,
        backbone: str | Backbone | None = None,
        config: Mapping[str, Any] | None = None,
        **loading: Any,
    ) -> Amortizer:
        """An amortizer by its method's name, or from a folder or Hub repository written by `save_pretrained`.

        Args:
            name: e.g. "iterative", a folder, or a Hub id, `user/name`.
            backbone: Hub id, folder, or one that is loaded already; by default the folder's or the method's own.
            config: settings that differ from the folder's or the method's defaults.
            loading: for the repository and the backbone; see `load_backbone`. `revision` is the repository's, and
                the backbone's where `name` is a method.

        Raises:
            ConfigError: unknown method or setting.
            HubError: the repository can't be had.
            BackboneError: the backbone can't be loaded.
        """
        unknown = sorted(set(loading) - set(inspect.signature(load_backbone).parameters))
        if unknown:
            raise ConfigError(
                f"{', '.join(unknown)} says nothing of how to load; settings of the method go into config={{...}}"
            )
        downloading = {key: value for key, value in loading.items() if key in hub.DOWNLOADING}
        method, settings, base, revision = described = _describe(name, downloading)
        cls = amortizer_class(method)
        chosen = backbone or base
        if method != str(name) and backbone is None:
            loading["revision"] = revision  # the one asked for is the amortizer's own
        loaded = load_backbone(chosen, **loading) if isinstance(chosen, str) else chosen
        reading = read_config if method == str(name) else read_stored
        made = cls(
            loaded,
            reading(cls.config_class, located({**settings, **plain(cls.config_class, config or {})}, downloading)),
        )
        if Path(name).is_dir() and _describe(name, {}) != described:
            raise ConfigError(f"{name} was written anew while it was read; load it again")
        return made

    @staticmethod
    def describe(name: str | Path) -> dict[str, Any]:
        """`method`, `config` and `backbone` of what `from_pretrained(name)` would load."""
        return dict(zip(("method", "config", "backbone", "revision"), _describe(name, {}), strict=True))

    @staticmethod
    def for_state(
        state: TaskState,
        backbone: str | Backbone | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        weights: str | None = None,
        adapter: str | None = None,
        **loading: Any,
    ) -> Amortizer:
        """The amortizer that made `state`, on its backbone, both rebuilt from the state's header.

        Args:
            backbone: Hub id, folder, or one that is loaded already, where the state's own can't be had by its name.
            config: settings of answering that differ from the state's, e.g. `max_new_tokens`.
            weights, adapter: the amortizer's repository or folder, and the feature adapter's, where they are elsewhere.
            loading: for the backbone and for repositories; `revision` is the backbone's, by default the state's.

        Raises:
            StateError: the backbone or the weights are others than the state was made with.
            BackboneError, HubError: one of them can't be had.
            ConfigError: likewise; or a setting that is unknown, or that a state is made with.
        """
        return restore(state, backbone, config=config, weights=weights, adapter=adapter, **loading)


def _describe(name: str | Path, downloading: Mapping[str, Any]) -> tuple[str, dict[str, Any], str, str | None]:
    """Method, settings, backbone and its revision, of a method's name, a folder or a repository."""
    folder = Path(name)
    if not folder.is_dir() and str(name) not in methods() and hub.is_repository_id(str(name)):
        folder = hub.fetch(str(name), **downloading)
    if not folder.is_dir():
        return str(name), {}, amortizer_class(str(name)).default_backbone, None
    if (folder / STATE_FILE).is_file():
        header = TaskState.from_pretrained(folder).header
        return header.method, dict(header.config), header.backbone, header.backbone_revision
    try:
        values = json.loads((folder / CONFIG_FILE).read_text())
        method, config, base = values["method"], values["config"], values["base_model_name_or_path"]
        revision = values.get("base_model_revision")
        version = int(values["format_version"])
        for key, kind in {"method": str, "config": dict, "base_model_name_or_path": str}.items():
            if not isinstance(values[key], kind) or (kind is str and not values[key]):
                raise TypeError(f"{key} is {values[key]!r}")
        if not isinstance(revision, str | None):
            raise TypeError(f"base_model_revision is {revision!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder} holds no amortizer ({type(error).__name__}: {error}); expected {CONFIG_FILE}"
        ) from error
    if version > FORMAT_VERSION:
        raise ConfigError(
            f"{folder} needs iai_hf {values.get('library_version')} or newer: pip install --upgrade iai-hf"
        )
    if (folder / WEIGHTS_FILE).is_file():
        config = {**config, "weights": str(folder)}
    elif shipped.DIGEST in values:
        raise ConfigError(f"{folder} lacks {WEIGHTS_FILE}, which its {CONFIG_FILE} tells of; restore it from a copy")
    return method, config, base, revision
