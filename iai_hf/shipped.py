"""Shipped weights: which of those in the package belong to a method and a backbone."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iai_hf.errors import ConfigError
from iai_hf.files import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from iai_hf.backbones import Backbone

FOLDER = Path(__file__).parent / "weights"
# Settings that weights do not depend on.
DESCRIBES_READING = ("max_tokens", "weights", "budget", "half_life", "calibrate", "max_new_tokens", "passes", "adapter")
DIGEST = "weights_sha256"
READINGS, PAUSE = 10, 0.1  # of a pair of files that someone may be writing: times, and seconds between them


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
        if values["backbone_fingerprint"] == backbone.plain.fingerprint:
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
    """A `config.json` that also tells which weights it belongs to."""
    return json.dumps({**json.loads(config), DIGEST: hashlib.sha256(weights).hexdigest()}, indent=2).encode()


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


def folder(source: str, file: str = WEIGHTS_FILE) -> Path:
    """Where the weights named, or the folder, are; `file` is what stands there.

    Raises:
        ConfigError: neither.
    """
    for path in (FOLDER / source, Path(source)):
        if (path / file).is_file():
            return path
    raise ConfigError(
        f"no weights {source!r}: expected a folder with {file}, or one of {', '.join(names()) or '(none)'}"
    )
