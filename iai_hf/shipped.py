"""Shipped weights: which of those in the package belong to a method and a backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.errors import ConfigError
from iai_hf.state import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from iai_hf.backbones import Backbone

FOLDER = Path(__file__).parent / "weights"
# Settings that weights do not depend on.
DESCRIBES_READING = ("max_tokens", "weights", "budget", "half_life", "calibrate", "max_new_tokens", "passes")


def names() -> tuple[str, ...]:
    """Names of all shipped weights."""
    return tuple(sorted(path.parent.name for path in FOLDER.glob(f"*/{CONFIG_FILE}")))


def find(method: str, config: Mapping[str, Any], backbone: Backbone) -> str | None:
    """The shipped weights of that method and those settings, trained on features of that backbone."""
    wanted = {key: value for key, value in config.items() if key not in DESCRIBES_READING}
    for name in names():
        values = describe(FOLDER / name)
        settings = {key: value for key, value in values["config"].items() if key not in DESCRIBES_READING}
        if (values["method"], settings) != (method, wanted):
            continue
        if values["backbone_fingerprint"] == backbone.fingerprint:
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


def folder(source: str) -> Path:
    """Where the weights named, or the folder, are.

    Raises:
        ConfigError: neither.
    """
    for path in (FOLDER / source, Path(source)):
        if (path / WEIGHTS_FILE).is_file():
            return path
    raise ConfigError(
        f"no weights {source!r}: expected a folder with {WEIGHTS_FILE}, or one of {', '.join(names()) or '(none)'}"
    )
