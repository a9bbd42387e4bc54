"""Commands by which states and amortizers leave and come: PEFT adapters, and the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iai_hf.cli.options import (
    Dtype,
    Json,
    Quiet,
    StateAdapter,
    StateBackbone,
    StateDir,
    StateRevision,
    StateWeights,
    a_folder,
    hold,
    report,
    start_logging,
)
from iai_hf.errors import ConfigError, StateError
from iai_hf.files import check_new

app = typer.Typer()


@app.command()
def export(
    context: typer.Context,
    state_dir: StateDir,
    peft: Annotated[Path | None, typer.Option("--peft", help="Folder for a PEFT adapter.")] = None,
    sentence_transformers: Annotated[
        Path | None,
        typer.Option("--sentence-transformers", help="Folder for modules that encode a text to its logits."),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", help="Folder for one ONNX graph of token ids to logits.")
    ] = None,
    backbone: StateBackbone = None,
    revision: StateRevision = None,
    weights: StateWeights = None,
    adapter: StateAdapter = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a state in a form that other libraries load without this package: an adapter, or a whole model."""
    start_logging(quiet)
    from iai_hf.auto import AutoAmortizer
    from iai_hf.backbones.peft_files import ADAPTER_CONFIG
    from iai_hf.export import Form
    from iai_hf.state import TaskState

    given: dict[Form, Path | None] = {"peft": peft, "sentence-transformers": sentence_transformers, "onnx": onnx}
    named = [(form, folder) for form, folder in given.items() if folder is not None]
    if len(named) != 1:
        raise ConfigError(f"got {len(named)} forms to export; expected one", options=list(given))
    form, folder = named[0]
    if (folder / ADAPTER_CONFIG).is_file():
        raise StateError(f"{folder} holds an adapter already; choose another folder")
    if form != "peft":
        check_new(folder)
        dtype = dtype or "float32"  # a model of its own, whose precision is not this machine's
    hold(context, folder)
    state = TaskState.from_pretrained(state_dir)
    amortizer = AutoAmortizer.for_state(
        state, backbone, weights=weights, adapter=adapter, dtype=dtype, revision=revision
    )
    amortizer.export(state, folder, form)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    what = {"peft": "PEFT adapter", "sentence-transformers": "sentence-transformers model", "onnx": "ONNX model"}[form]
    report({"output": str(folder), "bytes": size}, as_json, f"{what} of {size / 1000:,.0f} kB at {folder}")


@app.command()
def push(
    path: Annotated[Path, typer.Argument(help="Folder of a state or an amortizer.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Hub repository, user/name.")],
    commit_message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a private repository.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to push to.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="A tag of the card; may be repeated.")] = None,
    license: Annotated[str | None, typer.Option(help="Licence of a state, by the Hub's name, e.g. cc-by-4.0.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Upload a state or an amortizer to the Hub, with its card."""
    start_logging(quiet)
    from iai_hf import hub, shipped
    from iai_hf.auto import AutoAmortizer
    from iai_hf.card import amortizer_card, state_card
    from iai_hf.evaluation_file import read_evaluation
    from iai_hf.files import STATE_FILE
    from iai_hf.state import TaskState

    hub.check_id(repo_id)
    if not path.is_dir():
        raise StateError(f"nothing at {path}; expected a folder with a state or an amortizer")
    ignore: list[str] = []
    if (path / STATE_FILE).is_file():
        state = TaskState.from_pretrained(path)
        evaluation = read_evaluation(path, state.digest)
        card, only = state_card(state.header, state.nbytes, repo_id, tags or (), evaluation, license), hub.STATE_FILES
        contents, ignore = state.published().contents(), [] if evaluation else hub.EVALUATION_FILES
    else:
        card, only = amortizer_card(AutoAmortizer.describe(path), repo_id, tags or ()), hub.AMORTIZER_FILES
        contents = shipped.published({file.name: file.read_bytes() for file in path.glob("*.json")})
    address = hub.push(
        path,
        repo_id,
        commit_message=commit_message,
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        only=only,
        ignore=ignore,
        contents=contents,
        card=card,
    )
    report({"repository": repo_id, "url": address}, as_json, address)


@app.command()
def pull(
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="Hub repository, user/name.")],
    output: Annotated[Path, typer.Option("--output", help="Folder for its files.", callback=a_folder)],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Download a state or an amortizer from the Hub."""
    start_logging(quiet)
    from iai_hf import hub

    hub.pull(repo_id, output, revision=revision)
    report({"repository": repo_id, "output": str(output)}, as_json, f"{repo_id} at {output}")
