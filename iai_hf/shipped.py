"""Learned weights: those in the package, and which belong to a method and a backbone; those of folders and the Hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from iai_hf import hub
from iai_hf.config import apart, read_stored
from iai_hf.errors import ConfigError
from iai_hf.files import ADAPTER_FILE, CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from iai_hf.backbones import Backbone

AUTO = "auto"
TRAINING_FILE = "training.json"
# Settings that say where learned weights are, and the file that is there; their digests say which they are.
WHENCE = {"weights": WEIGHTS_FILE, "adapter": ADAPTER_FILE}
FOLDER = Path(__file__).parent / "weights"
DIGEST = "weights_sha256"
READINGS, PAUSE = 10, 0.1  # of a pair of files that someone may be writing: times, and seconds between them


def names() -> tuple[str, ...]:
    """Names of all shipped weights."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{CONFIG_FILE}")))


def find(method: str, config: Any, backbone: Backbone) -> str | None:
    """The shipped weights of that method and its settings, None where it has none, trained on that backbone."""
    free = apart(type(config))

    def binding(config: Any) -> dict[str, Any]:
        settings = {} if config is None else dataclasses.asdict(config)
        return {key: value for key, value in settings.items() if key not in free}

    for name in names():
        values = describe(FOLDER / name)
        if (values["method"], values["backbone_fingerprint"]) != (method, backbone.plain.fingerprint):
            continue
        if config is None or binding(read_stored(type(config), values["config"])) == binding(config):
            return name
    return None


def describe(folder: Path) -> dict[str, Any]:
    """What `config.json` beside weights says.

    Raises:
        ConfigError: there is none, or it does not name method and backbone.
    """
    try:
        values = json.loads((folder / CONFIG_FILE).read_text())
        if not {"method", "config", "backbone_fingerprint", "base_model_name_or_path"} <= set(values):
            raise ValueError("method or backbone is missing")
        return values
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder / CONFIG_FILE} does not describe weights ({error}); restore it") from error


def described(config: bytes, weights: bytes) -> bytes:
    """A `config.json` that tells which weights it belongs to: those beside it, wherever they came from."""
    values = json.loads(config)
    values |= {"config": {**values["config"], "weights": None}, DIGEST: hashlib.sha256(weights).hexdigest()}
    return json.dumps(values, indent=2).encode()


def read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """`config.json` and the bytes of the weights beside it, those of one `save_pretrained`, though another be at work.

    Raises:
        ConfigError: one of them can't be read, or they don't belong together and no one mends that.
    """
    for _ in range(READINGS):
        values = describe(folder)
        try:
            content = (folder / WEIGHTS_FILE).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{folder / WEIGHTS_FILE} can't be read ({error.strerror or error}); restore it"
            ) from error
        if values.get(DIGEST) in (None, hashlib.sha256(content).hexdigest()):  # older folders tell no digest
            return values, content
        time.sleep(PAUSE)
    raise ConfigError(
        f"{folder / WEIGHTS_FILE} holds no weights for {values['method']!r} as {CONFIG_FILE} beside it was saved with: "
        "one of the two is damaged or replaced; restore both from a copy, or save the amortizer again"
    )


class Located(NamedTuple):
    """Weights: the name by which a state tells of them, of a repository's `user/name@commit`; and their folder."""

    name: str
    folder: Path


def locate(source: str, file: str = WEIGHTS_FILE, **downloading: Any) -> Located:
    """Where weights are: shipped ones by their name, a folder, or a repository, `user/name` or `user/name@revision`.

    Args:
        file: what stands there.
        downloading: `token`, `cache_dir`, `local_files_only`, `force_download`.

    Raises:
        ConfigError: there are none.
        HubError: the repository can't be had.
    """
    path = FOLDER / source if source in names() else Path(os.path.abspath(source))
    if path.parent == FOLDER:
        return Located(path.name, path)
    cached = hub.of_cache(path)
    name = "@".join(cached) if cached else str(path)
    if (path / file).is_file():
        return Located(name, path)
    if cached:  # of a cache elsewhere
        source = name
    repository, _, revision = source.partition("@")
    if hub.is_repository_id(repository) and not path.exists():
        path = hub.fetch(repository, **{**downloading, "revision": revision or None})
        if (path / file).is_file():
            return Located(f"{repository}@{path.name}", path)
        raise ConfigError(f"repository {source!r} has no {file}; expected an amortizer with learned weights")
    raise ConfigError(
        f"no weights {source!r}: expected a folder with {file}, the repository of an amortizer (user/name), or "
        f"one of {', '.join(names()) or '(none)'}; for a state say where they are now",
        options=[key for key, name in WHENCE.items() if name == file],
    )


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as it may be published: of folders of learned weights, the name alone; see `hub.public`."""
    return {
        key: hub.public(value) if key in WHENCE and isinstance(value, str) and value not in names() else value
        for key, value in config.items()
    }


def published(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """An amortizer's `config.json` and `training.json` as the Hub gets them: of folders here, the name alone."""
    found = {}
    if CONFIG_FILE in files:
        values = json.loads(files[CONFIG_FILE])
        values["base_model_name_or_path"] = hub.public(values["base_model_name_or_path"])
        values["config"] = public(values["config"])
        found[CONFIG_FILE] = json.dumps(values, indent=2).encode()
    if TRAINING_FILE in files:
        values = json.loads(files[TRAINING_FILE])
        if isinstance(values.get("config", {}).get("backbone"), str):
            values["config"]["backbone"] = hub.public(values["config"]["backbone"])
        found[TRAINING_FILE] = json.dumps(values, indent=2).encode()
    return found
