"""Pushing and pulling through the real client: what is pushed comes back, faults are named, nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import examples
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError
from local_hub import TOKEN, LocalHub

from iai_hf import AutoAmortizer, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.backbones import Backbone, load_backbone
from iai_hf.data import open_stream
from iai_hf.errors import DataError, HubError, IAIError

REPOSITORY = "someone/reviews"
QUERIES = [row["input"] for row in examples(5, seed=3)]


FEW_RETRIES = {"HF_XET_CLIENT_RETRY_MAX_DURATION": "2s", "HF_XET_CLIENT_RETRY_BASE_DELAY": "50ms"}


@pytest.fixture(params=["lfs", "xet"])
def hub(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    """The server, and the client's settings: all that is promised holds by either transfer."""
    if request.param == "xet":
        pytest.importorskip("hf_xet")
    local = LocalHub()
    for name, value in FEW_RETRIES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", str(int(request.param == "lfs")))  # of other processes
    for name, value in {
        "ENDPOINT": local.url,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
        "HF_HUB_DISABLE_XET": request.param == "lfs",
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", local.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield local
    local.close()


@pytest.fixture
def amortizer(encoder: Backbone) -> Amortizer:
    return AutoAmortizer.from_pretrained("iterative", backbone=encoder)


@pytest.fixture
def state(amortizer: Amortizer) -> TaskState:
    return amortizer.adapt(examples(30), chunk_size=8, progress=False)


def card_of(hub: LocalHub, repository: str) -> str:
    found = hub.repositories[repository]
    card = found.commits[found.branches["main"]]["README.md"]
    assert isinstance(card, bytes)
    return card.decode()


def test_a_pushed_state_answers_alike_in_another_process(
    hub: LocalHub, amortizer: Amortizer, state: TaskState, tmp_path: Path
) -> None:
    url = state.push_to_hub(REPOSITORY, token=TOKEN, tags=["reviews"])
    assert url.startswith(hub.url)
    files = hub.repositories[REPOSITORY].commits[hub.repositories[REPOSITORY].branches["main"]]
    assert set(files) == {"README.md", "config.json", "state.safetensors"}
    code = (
        "import json, sys; from iai_hf import TaskState; state = TaskState.from_pretrained(sys.argv[1]); "
        "print(json.dumps(state.predict(json.loads(sys.argv[2]), backbone=sys.argv[3], dtype='float32')"
        ".log_probs.tolist()))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "empty"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code, REPOSITORY, json.dumps(QUERIES), amortizer.backbone.name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    torch.testing.assert_close(found, amortizer.predict(state, QUERIES).log_probs, rtol=1e-5, atol=1e-5)


def test_a_pushed_amortizer_comes_back(hub: LocalHub, amortizer: Amortizer, tmp_path: Path) -> None:
    amortizer.push_to_hub("someone/amortizer", token=TOKEN, private=True)
    assert hub.repositories["someone/amortizer"].private
    loaded = AutoAmortizer.from_pretrained("someone/amortizer", backbone=amortizer.backbone, token=TOKEN)
    assert loaded.fingerprint == amortizer.fingerprint
    with pytest.raises(HubError, match="someone/amortizer"):
        AutoAmortizer.from_pretrained(
            "someone/amortizer", backbone=amortizer.backbone, cache_dir=str(tmp_path / "empty")
        )


def test_a_state_of_a_pushed_amortizer_finds_its_weights_anywhere(
    hub: LocalHub, encoder: Backbone, tmp_path: Path
) -> None:
    trained = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    for parameter in trained.module.parameters():  # type: ignore[attr-defined]
        parameter.data += 0.3
    trained.push_to_hub("someone/amortizer", token=TOKEN, private=True)
    commit = hub.repositories["someone/amortizer"].branches["main"]
    private: dict[str, Any] = {"token": TOKEN, "cache_dir": str(tmp_path / "elsewhere")}
    loaded = AutoAmortizer.from_pretrained("someone/amortizer", backbone=encoder, **private)
    state = loaded.adapt(examples(30), chunk_size=8, progress=False)
    assert state.header.config["weights"] == f"someone/amortizer@{commit}"
    state.push_to_hub(REPOSITORY, token=TOKEN)
    # The repository moves on; the state stays with the commit that it was made by.
    for parameter in trained.module.parameters():  # type: ignore[attr-defined]
        parameter.data += 0.3
    trained.push_to_hub("someone/amortizer", token=TOKEN)
    shutil.rmtree(tmp_path / "elsewhere")
    pulled = TaskState.from_pretrained(REPOSITORY)
    again = AutoAmortizer.for_state(pulled, encoder, **private)
    assert torch.equal(again.predict(pulled, QUERIES).log_probs, loaded.predict(state, QUERIES).log_probs)  # type: ignore[arg-type]
    with pytest.raises(HubError, match="someone/amortizer"):
        AutoAmortizer.for_state(pulled, encoder, cache_dir=str(tmp_path / "empty"))


def test_nothing_of_this_machines_folders_is_published(
    hub: LocalHub, encoder_folder: Path, tmp_path: Path, amortizer: Amortizer, state: TaskState
) -> None:
    state.push_to_hub(REPOSITORY, token=TOKEN, directory=tmp_path / "mine")
    amortizer.push_to_hub("someone/amortizer", token=TOKEN)
    for name in (REPOSITORY, "someone/amortizer"):
        fetched = snapshot_download(name, token=TOKEN)
        for path in Path(fetched).rglob("*"):
            assert path.is_dir() or str(encoder_folder.parent).encode() not in path.read_bytes(), path.name
    assert TaskState.from_pretrained(tmp_path / "mine").header.backbone == str(encoder_folder)
    assert TaskState.from_pretrained(REPOSITORY).digest == state.digest


def test_what_a_user_wrote_into_the_card_stays(hub: LocalHub, state: TaskState, tmp_path: Path) -> None:
    def card() -> str:
        return card_of(hub, REPOSITORY)

    state.push_to_hub(REPOSITORY, token=TOKEN, directory=tmp_path / "mine")
    readme = tmp_path / "mine" / "README.md"
    readme.write_text(readme.read_text() + "\n## Of the disk\n")
    state.push_to_hub(REPOSITORY, token=TOKEN, directory=tmp_path / "mine")
    assert "## Of the disk" in card()
    hub.repositories[REPOSITORY].commit("main", {"README.md": (card() + "\n## Of the Hub\n").encode()})
    state.push_to_hub(REPOSITORY, token=TOKEN)
    assert "## Of the disk" in card()
    assert "## Of the Hub" in card()
    state.push_to_hub(REPOSITORY, token=TOKEN, directory=tmp_path / "mine")
    assert "## Of the Hub" in readme.read_text()
    hub.repositories[REPOSITORY].commit("main", {"README.md": (card() + "\nSecond thoughts\n").encode()})
    readme.write_text(readme.read_text() + "\nThird thoughts\n")
    with pytest.raises(DataError, match="Second thoughts"):
        state.push_to_hub(REPOSITORY, token=TOKEN, directory=tmp_path / "mine")
    assert "Third thoughts" in readme.read_text()
    assert "Second thoughts" in card()


def test_revisions_and_pull_requests(hub: LocalHub, amortizer: Amortizer, state: TaskState) -> None:
    state.push_to_hub(REPOSITORY, token=TOKEN)
    more = amortizer.adapt(examples(8, seed=1), state, progress=False)
    more.push_to_hub(REPOSITORY, token=TOKEN, revision="next")
    assert "discussions" in more.push_to_hub(REPOSITORY, token=TOKEN, create_pr=True)
    assert TaskState.from_pretrained(REPOSITORY).header.examples == 30
    assert TaskState.from_pretrained(REPOSITORY, revision="next").header.examples == 38
    first = hub.repositories[REPOSITORY].branches["main"]
    assert TaskState.from_pretrained(REPOSITORY, revision=first).header.examples == 30
    with pytest.raises(HubError, match="RevisionNotFound"):
        TaskState.from_pretrained(REPOSITORY, revision="never")


def test_what_was_had_once_is_had_without_the_server(hub: LocalHub, state: TaskState) -> None:
    state.push_to_hub(REPOSITORY, token=TOKEN)
    TaskState.from_pretrained(REPOSITORY)
    hub.close()
    again = TaskState.from_pretrained(REPOSITORY, local_files_only=True)
    assert again.header == state.published().header


@pytest.mark.parametrize("step", ["preupload", "content", "commit"])
@pytest.mark.parametrize("status", [401, 403, 404, 409, 500, 503])
def test_a_refused_push_keeps_everything_and_says_how_to_go_on(
    hub: LocalHub, state: TaskState, tmp_path: Path, status: int, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    paths = {"preupload": ["/preupload/"], "content": ["/large/", "/v1/xorbs/"], "commit": ["/commit/"]}
    hub.faults |= dict.fromkeys(paths[step], status)
    with pytest.raises(HubError) as caught:
        state.push_to_hub(REPOSITORY, token=TOKEN, directory=tmp_path / "kept")
    assert f"iai push {tmp_path / 'kept'} {REPOSITORY}" in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert TaskState.from_pretrained(tmp_path / "kept").header == state.header
    assert not hub.repositories[REPOSITORY].commits[hub.repositories[REPOSITORY].branches["main"]]


def test_a_wrong_token_is_refused_and_never_shown(hub: LocalHub, state: TaskState, tmp_path: Path) -> None:
    wrong = "hf_" + "wrong" * 6
    with pytest.raises(HubError) as caught:
        state.push_to_hub(REPOSITORY, token=wrong, directory=tmp_path / "kept")
    assert wrong not in str(caught.value)
    files = [path.read_bytes() for path in (tmp_path / "kept").iterdir()]
    assert not any(wrong.encode() in content for content in files)


def test_a_transfer_that_breaks_off_leaves_no_state(
    hub: LocalHub, state: TaskState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    state.push_to_hub(REPOSITORY, token=TOKEN)
    hub.faults |= {"state.safetensors": "cut", "/xorbs/": "cut"}
    with pytest.raises(HubError, match=REPOSITORY):
        TaskState.from_pretrained(REPOSITORY)
    hub.faults.clear()
    assert TaskState.from_pretrained(REPOSITORY).header == state.published().header


def test_a_server_that_is_too_slow_is_named(hub: LocalHub, state: TaskState, tmp_path: Path) -> None:
    state.push_to_hub(REPOSITORY, token=TOKEN)
    environment = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1"}
    code = (
        "import sys; from iai_hf import TaskState; from iai_hf.errors import DataError, HubError\n"
        "try: TaskState.from_pretrained(sys.argv[1])\n"
        "except HubError as error: print(error)"
    )
    hub.faults["/resolve/"] = "slow"
    done = in_process(hub, tmp_path, "-c", code, REPOSITORY, **environment)
    assert done.returncode == 0, done.stderr
    assert REPOSITORY in done.stdout
    assert "check the id, your access" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_push_to_a_server_that_is_down_keeps_everything(hub: LocalHub, state: TaskState, tmp_path: Path) -> None:
    hub.close()
    with pytest.raises(HubError, match="iai push"):
        state.push_to_hub(REPOSITORY, token=TOKEN, directory=tmp_path / "kept")
    assert TaskState.from_pretrained(tmp_path / "kept").header == state.header


def test_the_evaluation_and_the_curve_go_along(hub: LocalHub, encoder_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("train", 0), ("test", 1)):
        rows = "\n".join(json.dumps(row) for row in examples(60, seed=seed))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    adapt = ["-m", "iai_hf.cli", "adapt", "iterative", "--backbone", encoder_folder, "--chunk-size", 8, "--quiet"]
    adapt += ["--data", tmp_path / "train.jsonl", "--test", tmp_path / "test.jsonl", "--output", tmp_path / "state"]
    assert in_process(hub, tmp_path, *adapt).returncode == 0
    evaluation = json.loads((tmp_path / "state" / "evaluation.json").read_text())
    assert [point["examples"] for point in evaluation["curve"]][-1] == 60
    assert len(evaluation["curve"]) >= 3
    done = in_process(hub, tmp_path, "-m", "iai_hf.cli", "push", tmp_path / "state", REPOSITORY)
    assert done.returncode == 0, done.stderr
    files = hub.repositories[REPOSITORY].commits[hub.repositories[REPOSITORY].branches["main"]]
    curve = files["curve.png"]
    assert isinstance(curve, bytes)
    assert curve.startswith(b"\x89PNG")
    card = card_of(hub, REPOSITORY)
    assert "model-index" in card
    assert f"value: {evaluation['curve'][-1]['accuracy']:.4f}".rstrip("0") in card
    assert "![Adaptation curve](curve.png)" in card
    more = in_process(hub, tmp_path, *adapt[:-1], tmp_path / "other", "--max-examples", 40)
    assert more.returncode == 0, more.stderr
    shutil.copy(tmp_path / "state" / "evaluation.json", tmp_path / "other")
    done = in_process(hub, tmp_path, "-m", "iai_hf.cli", "push", tmp_path / "other", "someone/other")
    assert (done.returncode, "left out" in done.stderr) == (0, True)
    files = hub.repositories["someone/other"].commits[hub.repositories["someone/other"].branches["main"]]
    assert "model-index" not in card_of(hub, "someone/other")
    assert set(files) == {"README.md", "config.json", "state.safetensors"}
    (tmp_path / "state" / "evaluation.json").write_text('{"curve": [7]}')
    done = in_process(hub, tmp_path, "-m", "iai_hf.cli", "push", tmp_path / "state", REPOSITORY)
    assert (done.returncode, "no evaluation" in done.stderr) == (2, True)


def test_a_card_names_the_datasets_and_the_licence(
    hub: LocalHub, amortizer: Amortizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    loaded = datasets.Dataset.from_list(examples(20))
    monkeypatch.setattr("iai_hf.data.load_hub_dataset", lambda *_: loaded)
    state = amortizer.adapt("someone/films:small", progress=False)
    state = amortizer.adapt("someone/films:small", state, progress=False)
    assert state.header.datasets == ("someone/films",)
    state.push_to_hub(REPOSITORY, token=TOKEN, license="cc-by-4.0")
    card = card_of(hub, REPOSITORY)
    metadata = card.split("---")[1]
    assert "license: cc-by-4.0" in metadata
    assert "datasets:\n- someone/films" in metadata
    assert amortizer.adapt(examples(20), progress=False).header.datasets == ()


def test_the_card_of_a_table_has_a_snippet_that_runs(hub: LocalHub, tmp_path: Path) -> None:
    from iai_hf import Chunk, TaskSpec

    amortizer = AutoAmortizer.from_pretrained("numeric-parametric")
    state = amortizer.init_state(TaskSpec("regression", columns=("size", "age")))
    state = amortizer.update(state, Chunk(((1.0, 2.0), (0.0, 1.0), (3.0, 0.0)), ("1", "2", "5")))
    for name, what in (("someone/table", state), ("someone/numbers", amortizer)):
        what.push_to_hub(name, token=TOKEN)
        card = card_of(hub, name)
        assert "base_model" not in card  # its backbone is an architecture, no repository
        snippet = card.split("```python\n")[1].split("```")[0]
        done = in_process(hub, tmp_path, "-c", snippet)
        assert done.returncode == 0, done.stderr


def test_a_file_that_leads_out_of_the_folder_is_refused(hub: LocalHub, state: TaskState, tmp_path: Path) -> None:
    state.push_to_hub(REPOSITORY, token=TOKEN)
    hub.repositories[REPOSITORY].commit("main", {"../../../../evil.json": b"{}"})
    with pytest.raises(HubError):
        TaskState.from_pretrained(REPOSITORY)
    assert not list(tmp_path.rglob("evil.json"))


def test_code_in_a_repository_is_not_even_fetched(hub: LocalHub, state: TaskState, tmp_path: Path) -> None:
    state.push_to_hub(REPOSITORY, token=TOKEN)
    hub.repositories[REPOSITORY].commit("main", {"evil.py": b"raise", "evil.pkl": b"", "pytorch_model.bin": b""})
    TaskState.from_pretrained(REPOSITORY)
    assert not any("evil" in request or ".bin" in request for request in hub.requests)


def test_the_command_line_pushes_and_pulls(
    hub: LocalHub, state: TaskState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from iai_hf import cli

    def iai(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["iai", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = state.save_pretrained(tmp_path / "mine")
    assert iai("push", folder, REPOSITORY, "--tag", "reviews", "--quiet") == 0
    assert iai("pull", REPOSITORY, "--output", tmp_path / "copy", "--quiet") == 0
    assert TaskState.from_pretrained(tmp_path / "copy").header == state.published().header
    assert iai("pull", REPOSITORY, "--output", tmp_path / "copy", "--quiet") == 2
    assert iai("pull", "someone/nothing", "--output", tmp_path / "none", "--quiet") == 2
    assert not (tmp_path / "none").exists()
    assert iai("push", tmp_path / "nowhere", REPOSITORY) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 3
    card = (tmp_path / "copy" / "README.md").read_text()
    assert "reviews" in card
    assert f'TaskState.from_pretrained("{REPOSITORY}")' in card


def in_process(hub: LocalHub, tmp_path: Path, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0", **variables}
    line = [sys.executable, *map(str, command)]
    return subprocess.run(line, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)


def test_a_training_run_pushes_its_amortizer(hub: LocalHub, encoder_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.jsonl").write_text("\n".join(json.dumps(row) for row in examples(60)))
    config = {"method": "iterative", "backbone": str(encoder_folder), "tasks": ["{data}/a"], "train_steps": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, "queries": 8, "longest": 32}))
    options = ["--config", tmp_path / "config.json", "--data_dir", tmp_path, "--output_dir", tmp_path / "run"]
    options += ["--cache_dir", tmp_path / "cache", "--quiet", "--push_to_hub"]
    done = in_process(hub, tmp_path, "scripts/train_amortizer.py", *options, "--hub_model_id", "someone/trained")
    assert done.returncode == 0, done.stderr
    found = hub.repositories["someone/trained"]
    assert set(found.commits[found.branches["main"]]) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "training.json",
    }
    hub.faults["/commit/"] = 403
    again = in_process(hub, tmp_path, "scripts/train_amortizer.py", *options, "--hub_model_id", "someone/other")
    assert (again.returncode, f"iai push {tmp_path / 'run'} someone/other" in again.stderr) == (2, True)
    assert AutoAmortizer.from_pretrained(tmp_path / "run").module is not None  # type: ignore[attr-defined]


def test_shipped_amortizers_are_pushed_with_their_cards(hub: LocalHub, tmp_path: Path) -> None:
    names = ["minilm-l6-iterative", "minilm-l6-iterative-explicit"]
    done = in_process(hub, tmp_path, "scripts/push_to_hub.py", "--namespace", "someone", "--names", *names)
    assert done.returncode == 0, done.stderr
    for name in names:
        files = hub.repositories[f"someone/{name}"]
        assert b"base_model" in files.commits[files.branches["main"]]["README.md"]


@pytest.mark.parametrize(
    "load",
    [TaskState.from_pretrained, AutoAmortizer.from_pretrained, load_backbone],
    ids=["state", "amortizer", "backbone"],
)
def test_of_a_gated_repository_the_remedy_is_shown(hub: LocalHub, load: Callable[[str], object]) -> None:
    hub.faults["/api/models/"] = "gated"
    with pytest.raises(IAIError) as caught:
        load("someone/gated")
    assert f"ask for access at {hub.url}/someone/gated, then log in" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_of_a_gated_dataset_the_remedy_is_shown(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refused(name: str, *args: object, **options: object) -> None:
        try:
            HfApi(endpoint=hub.url).dataset_info(name)
        except GatedRepoError as error:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' is a gated dataset") from error

    monkeypatch.setattr(datasets, "load_dataset", refused)
    hub.faults["/api/datasets/"] = "gated"
    with pytest.raises(DataError, match=f"ask for access at {hub.url}/datasets/someone/gated, then log in"):
        open_stream("someone/gated")


@pytest.mark.parametrize("name", ["no-slash", "two/slashes/here", "a space/here", ""])
def test_what_is_no_id_is_told_before_anything_is_written(
    name: str, hub: LocalHub, state: TaskState, tmp_path: Path
) -> None:
    with pytest.raises(HubError, match="expected user/name"):
        state.push_to_hub(name, directory=tmp_path / "state")
    assert not (tmp_path / "state").exists()
    assert not hub.requests
