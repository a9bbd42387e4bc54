"""Files that are written whole or not at all, however many threads and processes write, and never over others'."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from iai_hf.errors import StateError

STATE_FILE = "state.safetensors"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ADAPTER_FILE = "adapter.safetensors"
EVALUATION_FILE = "evaluation.json"
CURVE_FILE = "curve.png"
FIRST_LINE = 1 << 20  # bytes of a file that are looked at to see what it is
_WRITING = threading.Lock()  # held while files that belong together are written
_CLAIMS = threading.local()  # `paths`: folders that this thread's run holds


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


def check_place(directory: Path) -> None:
    """As `check_writable`, for what is written later: a folder that was not there is not left."""
    made = _absent(directory)
    try:
        check_writable(directory)
    finally:
        _remove(made)


def check_output(path: Path, *inputs: str | Path) -> None:
    """Make sure that a file can be written, and is none of those that are read.

    Raises:
        StateError: it is a folder or an input, or its folder can't be made or written.
    """
    if path.is_dir():
        raise StateError(f"{path} is a folder; expected the name of a file for the output")
    for read in map(Path, inputs):
        if path.exists() and read.exists() and path.samefile(read):
            raise StateError(f"{path} is read as {read}, so it can't be the output; choose another file")
    if not is_stream(path):
        check_place(Path(os.path.realpath(path)).parent)


def check_own(path: Path, keys: Iterable[str], what: str, absent: Iterable[str] = ()) -> None:
    """Make sure that a JSON file, where there is one, may be written anew: that it is `what`.

    Args:
        keys: that `what` has.
        absent: keys that it has not.

    Raises:
        StateError: it is another program's file, or of another use.
    """
    if is_stream(path):
        return
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not set(keys) <= set(found) or set(absent) & set(found):
        raise StateError(f"{path} is not {what}, and would be overwritten; choose another place")


def check_own_lines(path: Path, keys: Iterable[str], what: str) -> None:
    """As `check_own`, of a JSONL file, by its first line.

    Raises:
        StateError: it is another program's file, or of another use.
    """
    if is_stream(path):
        return
    try:
        with path.open("rb") as file:
            first = file.readline(FIRST_LINE)
        found = json.loads(first) if first.strip() else None
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, RecursionError):
        found, first = None, b"?"
    if first.strip() and (not isinstance(found, dict) or not set(keys) <= set(found)):
        raise StateError(f"{path} is not {what}, and would be overwritten; choose another place")


@contextmanager
def claimed(directory: str | Path) -> Iterator[None]:
    """Hold a folder for one run, which may claim it again; it is made, and gone again where nothing was written to it.

    Raises:
        StateError: another run writes to it, or it can't be made or written.
    """
    path = os.path.realpath(directory)
    held: set[str] = _CLAIMS.__dict__.setdefault("paths", set())
    if path in held:
        yield
        return
    made = _absent(Path(path))
    check_writable(Path(path))
    lock = _lock(path)
    held.add(path)
    try:
        yield
    finally:
        held.discard(path)
        _remove(made)
        if lock is not None:
            os.close(lock)  # which lets go of it, as the end of the process does


def _absent(directory: Path) -> list[Path]:
    """The folder and its parents, as far as they are not there, the innermost first."""
    return [folder for folder in (directory, *directory.parents) if not folder.exists()]


def _remove(folders: Iterable[Path]) -> None:
    """Remove folders up to the first that holds something."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _lock(path: str) -> int | None:
    """A descriptor of the folder, which is locked; None where the system or the disk has no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StateError(f"another run writes to {path}; wait until it ends, or choose another folder") from None
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def is_stream(path: Path) -> bool:
    """Whether a path is a pipe or a device, or this process's standard output or error, and no file of its own."""
    try:
        found = path.stat()
    except OSError:
        return False
    return not stat.S_ISREG(found.st_mode) or _standard(found) is not None


def _standard(found: os.stat_result) -> int | None:
    for descriptor in (1, 2):
        try:
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
        except OSError:  # it is closed
            continue
    return None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that at every moment either the old or the new content stands at `path`.

    Where a link leads is written, with the permissions that the old file had; into a pipe or a device the content goes
    as it is.
    """
    if is_stream(path):
        standard = _standard(path.stat())
        # Standard output has a position of its own: opened anew, a file behind it would be overwritten from its start.
        with open(path if standard is None else os.dup(standard), "wb") as stream:
            stream.write(content)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            partial.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_together(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write files that belong together, each whole, so that no other thread's come between."""
    with _WRITING:
        for name, content in contents.items():
            write_whole(directory / name, content)


def check_new(directory: Path) -> None:
    """Raise StateError where a folder is not there to be made: a file is in its place, or it holds something."""
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        what = "holds files already" if directory.is_dir() else "is a file"
        raise StateError(f"{directory} {what}; choose another folder")


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """A hidden folder for many files, which becomes `directory` when the block ends; where it fails nothing is left.

    Raises:
        StateError: `directory` is a file or holds something, or can't be made.
    """
    check_new(directory)
    path = Path(os.path.realpath(directory))
    made = _absent(path.parent)
    partial = beside(path)
    try:
        partial.mkdir(parents=True)
        yield partial
        if path.exists():
            path.rmdir()  # it is empty
        os.replace(partial, path)
    except OSError as error:
        raise StateError(f"can't write to {directory}: {error.strerror or error}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _remove(made)


def beside(path: Path) -> Path:
    """A hidden name in the same folder that no other thread or process has, for what is moved to `path` when whole."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
