"""`evaluation.json`: how good a state is, as it was measured; written beside the state, and read by its card."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iai_hf.errors import DataError
from iai_hf.files import EVALUATION_FILE, write_whole

log = logging.getLogger(__name__)


def write(directory: Path, evaluation: Mapping[str, Any]) -> None:
    """Write it into a folder, whole."""
    write_whole(directory / EVALUATION_FILE, json.dumps(evaluation, indent=2).encode())


def read(directory: Path) -> dict[str, Any] | None:
    """What stands in a folder's `evaluation.json`, None where there is none.

    Raises:
        DataError: the file is damaged.
    """
    path = directory / EVALUATION_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        numbers = all(isinstance(value, (int, float)) for point in found["curve"] for value in point.values())
        if not numbers or not all({"examples", "adapt_seconds"} <= set(point) for point in found["curve"]):
            raise ValueError("a point of its curve is no record of numbers")
        if not (found["curve"] and isinstance(found["test"], str) and isinstance(found["test_examples"], int)):
            raise ValueError("curve, test or test_examples is missing")
        if "run" in found and not (
            isinstance(found["test_digest"], str)
            and isinstance(found["state"], str)
            and isinstance(found["milliseconds_per_query"], float)
        ):
            raise ValueError("test_digest, state or milliseconds_per_query is missing")
        return found
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is no evaluation ({error}); delete it, or measure again", options=("test",)) from error


def read_evaluation(directory: Path, digest: str) -> dict[str, Any] | None:
    """The evaluation of the state of that digest, where one stands there; None, with a warning, where it is another's.

    Raises:
        DataError: the file is damaged.
    """
    found = read(directory)
    if found is None or found.get("state") == digest:
        return found
    log.warning(
        "%s in %s is of a state %s, not of the one that lies there (%s); it is left out: measure anew",
        EVALUATION_FILE,
        directory,
        str(found.get("state", "unknown"))[:8],
        digest[:8],
    )
    return None
