"""Files that are written whole or not at all, however many threads and processes write."""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path

from iai_hf.errors import StateError

_WRITING = threading.Lock()  # held while files that belong together are written


def check_writable(directory: Path) -> None:
    """Make the folder and write to it once, so that a run does not fail when its work is done.

    Raises:
        StateError: it can't be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"probe")
    except OSError as error:
        raise StateError(f"can't write to {directory}: {error.strerror or error}; choose another folder") from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at every moment either the old or the new content stands at `path`."""
    partial = beside(path)
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_together(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that belong together, each whole, so that no other thread's come between."""
    with _WRITING:
        for name, content in contents.items():
            write_whole(directory / name, content)


def beside(path: Path) -> Path:
    """A hidden name in the same folder that no other thread or process has, for what is moved to `path` when whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
