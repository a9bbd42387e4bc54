"""The Hub: repositories of amortizers and task states, through the real client; files of plain values alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iai_hf import __version__
from iai_hf.errors import HubError
from iai_hf.files import beside

ALLOWED = ["*.json", "*.safetensors", "*.md", "*.png"]
AMORTIZER_FILES = ["config.json", "model.safetensors", "training.json", "README.md"]  # without a run's checkpoint
STATE_FILES = ["config.json", "state.safetensors", "evaluation.json", "README.md", "*.png"]
DOWNLOADING = ("revision", "token", "cache_dir", "local_files_only", "force_download")


CARD_FILE = "README.md"


@contextmanager
def staged(directory: str | Path | None) -> Iterator[Path]:
    """A folder to save into: the one given, or a new one, which is kept only where an upload fails."""
    folder = Path(directory) if directory is not None else Path(tempfile.mkdtemp(prefix="iai_hf-"))
    yield folder
    if directory is None:
        shutil.rmtree(folder, ignore_errors=True)


def is_repository_id(name: str) -> bool:
    """Whether a name has the form of a Hub id, `user/name`."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def fetch(repo_id: str, **downloading: Any) -> Path:
    """Folder in the Hub's cache with a repository's files.

    Args:
        downloading: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, as in `huggingface_hub`.

    Raises:
        HubError: not found, no access, no network and not cached, or a file's name leads out of the folder.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repo_id, allow_patterns=ALLOWED, library_name="iai_hf", library_version=__version__, **downloading
            )
        )
    except Exception as error:  # the client has a type for each; the remedy is one
        raise HubError(
            f"{repo_id!r} can't be had from the Hub ({_reason(error, downloading.get('token'))}); check the id, your "
            "access (hf auth login) and the network"
        ) from None


def pull(repo_id: str, directory: Path, **downloading: Any) -> Path:
    """Copy a repository's files into a folder, all of them or none.

    Raises:
        HubError: as `fetch`; or the folder holds something.
    """
    if directory.exists() and any(directory.iterdir()):
        raise HubError(f"{directory} is not empty; choose another folder")
    source = fetch(repo_id, **downloading)
    partial = beside(directory)
    try:
        shutil.copytree(source, partial)
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except OSError as error:
        raise HubError(f"can't write to {directory}: {error.strerror or error}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return directory


def push(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    only: Sequence[str] = ALLOWED,
) -> str:
    """Upload a folder's files, in one commit; the commit's, or the pull request's, address.

    Args:
        only: patterns of the files that are uploaded.

    Raises:
        HubError: refused, or the transfer failed; the folder is as it was, and the message says how to push it again.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="iai_hf", library_version=__version__)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(only),
            commit_message=commit_message or f"Upload with iai_hf {__version__}",
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:  # the client has a type for each; the remedy is one
        raise HubError(
            f"can't push to {repo_id!r} ({_reason(error, token)}); {folder} is as it was: check the id and your access "
            f"(hf auth login), then iai push {folder} {repo_id}"
        ) from None
    return str(done.pr_url or done.commit_url)


def publish(
    save: Callable[[Path], object], card: str, repo_id: str, directory: str | Path | None, **pushing: Any
) -> str:
    """Save something with its card into a folder, and `push` it; the folder is kept where it was named or that fails.

    Raises:
        HubError: as `push`.
    """
    with staged(directory) as folder:
        save(folder)
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
        return push(folder, repo_id, **pushing)


def _reason(error: Exception, token: str | bool | None) -> str:
    """Type and first line of an error, without the token."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    return text.replace(token, "***") if isinstance(token, str) and token else text
