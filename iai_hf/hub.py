"""The Hub: repositories of amortizers and task states, through the real client; files of plain values alone."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from iai_hf import __version__, readme
from iai_hf.errors import DataError, HubError
from iai_hf.files import CURVE_FILE, EVALUATION_FILE, beside, check_place, write_whole

ALLOWED = ["*.json", "*.safetensors", "*.md", "*.png"]
AMORTIZER_FILES = ["config.json", "model.safetensors", "training.json", "README.md"]  # without a run's checkpoint
STATE_FILES = ["config.json", "state.safetensors", EVALUATION_FILE, "README.md", "*.png"]
EVALUATION_FILES = [EVALUATION_FILE, CURVE_FILE]  # which may be of another state
DOWNLOADING = ("revision", "token", "cache_dir", "local_files_only", "force_download")
CARD_FILE = "README.md"
CACHED = re.compile(r"/models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})$")  # a repository in a cache of the Hub's


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


def check_id(name: str) -> None:
    """Raise HubError where a name is no Hub id, `user/name`."""
    if not is_repository_id(name):
        raise HubError(f"{name!r} is no id of a repository; expected user/name")


def fetch(repo_id: str, **downloading: Any) -> Path:
    """Folder in the Hub's cache with a repository's files.

    Args:
        downloading: `revision`, `token`, `cache_dir`, `local_files_only`, `force_download`, as in `huggingface_hub`.

    Raises:
        HubError: not found, no access, no network and not cached, or a file's name leads out of the folder.
    """
    from huggingface_hub import snapshot_download

    check_id(repo_id)
    try:
        return Path(
            snapshot_download(
                repo_id, allow_patterns=ALLOWED, library_name="iai_hf", library_version=__version__, **downloading
            )
        )
    except Exception as error:  # the client has a type for each; the remedy is one
        raise HubError(
            f"{repo_id!r} can't be had from the Hub ({reason(error, downloading.get('token'))}); check the id, your "
            "access (hf auth login) and the network"
        ) from None


def pull(repo_id: str, directory: Path, **downloading: Any) -> Path:
    """Copy a repository's files into a folder, all of them or none.

    Raises:
        HubError: as `fetch`; or the folder holds something.
    """
    if directory.exists() and not directory.is_dir():
        raise HubError(f"{directory} is a file; expected a folder, that is empty or not there yet")
    check_place(directory.parent)
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
    ignore: Sequence[str] = (),
    contents: Mapping[str, bytes] | None = None,
    card: str | None = None,
) -> str:
    """Upload a folder's files, in one commit; the commit's, or the pull request's, address.

    Args:
        only, ignore: patterns of the files that are uploaded, and of those that are not.
        contents: what goes there instead of the files of these names.
        card: generated; it is written into the folder's README.md, where what a user wrote around it stays, there and
            on the Hub.

    Raises:
        HubError: refused, or the transfer failed; the folder is as it was, and the message says how to push it again.
        DataError: a README.md can't be read, or was edited in both places.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import filter_repo_objects

    check_id(repo_id)
    api = HfApi(token=token, library_name="iai_hf", library_version=__version__)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        if card is not None:
            here = folder / CARD_FILE
            mine = here.read_text(encoding="utf-8") if here.is_file() else None
            theirs = _readme(api, repo_id, None if create_pr else revision)
            whole = readme.combined(card, mine, theirs, str(folder)).encode()
            contents = {**(contents or {}), CARD_FILE: whole}
        files: dict[str, Any] = {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
        files |= contents or {}
        chosen = filter_repo_objects(files, allow_patterns=list(only), ignore_patterns=list(ignore))
        operations = [CommitOperationAdd(name, files[name]) for name in chosen]
        done = api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message or f"Upload with iai_hf {__version__}",
            revision=revision,
            create_pr=create_pr,
        )
        if card is not None:
            write_whole(here, whole)  # not before: as long as it is not pushed, it counts as edited
    except DataError:
        raise
    except Exception as error:  # the client has a type for each; the remedy is one
        raise HubError(
            f"can't push to {repo_id!r} ({reason(error, token)}); {folder} is as it was: check the id and your access "
            f"(hf auth login), then iai push {folder} {repo_id}"
        ) from None
    return str(done.pr_url or done.commit_url)


def _readme(api: Any, repo_id: str, revision: str | None) -> str | None:
    """The repository's README.md, None where it has none yet."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = api.hf_hub_download(repo_id, CARD_FILE, revision=revision)
    except EntryNotFoundError:
        return None
    return Path(path).read_text(encoding="utf-8")


def publish(save: Callable[[Path], object], repo_id: str, directory: str | Path | None, **pushing: Any) -> str:
    """Save something into a folder, and `push` it; the folder is kept where it was named or that fails.

    Raises:
        HubError, DataError: as `push`.
    """
    check_id(repo_id)
    with staged(directory) as folder:
        save(folder)
        return push(folder, repo_id, **pushing)


def public(name: str) -> str:
    """A backbone's or weights' name as it may be published: of a folder, its last part, as `./part`.

    The way to a folder is of no use elsewhere; what is left can't be taken for a repository's id.
    """
    return f"./{Path(name).name}" if is_folder(name) else name


def base_model(name: str) -> str | None:
    """A backbone's id on the Hub, for a card; None of a folder here or elsewhere, which has none that is known."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if is_folder(name) else name


def of_cache(folder: Path | str) -> tuple[str, str] | None:
    """Id and commit of the repository whose snapshot in a cache of the Hub's a folder is; None of other folders."""
    found = CACHED.search(Path(folder).as_posix())
    return (f"{found[1]}/{found[2]}", found[3]) if found else None


def in_cache(folder: Path | str) -> bool:
    """Whether a folder is in the cache that is in use, where its id and commit find it again."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(folder).is_relative_to(os.path.abspath(HF_HUB_CACHE))


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder, here or on the machine where it was written down, and no Hub id."""
    return Path(name).is_absolute() or name.startswith(".") or Path(name).is_dir()


def reason(error: BaseException, token: str | bool | None = None) -> str:
    """Type and first line of an error, without the token; of a gated repository, how access to it is had."""
    from huggingface_hub.errors import GatedRepoError

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)  # datasets and transformers have errors of their own around the client's
    gated = next((cause for cause in causes if isinstance(cause, GatedRepoError)), None)
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    text = f"{type(error).__name__}: {lines[0]}"
    if gated is not None:
        page = str(gated.response.url).replace("/api/models/", "/").replace("/api/datasets/", "/datasets/")
        page = "/".join(page.split("/")[: 6 if "/datasets/" in page else 5])
        text = f"it is gated: ask for access at {page}, then log in with hf auth login, or pass a token that has it"
    return text.replace(token, "***") if isinstance(token, str) and token else text
