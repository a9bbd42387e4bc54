"""What a user may type by mistake, for every command: one clear line, status 2, and nothing on the disk changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import examples
from test_cli import adapt, iai, write

from iai_hf import TaskState


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file with its bytes, and every folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, causal_folder: Path) -> Path:
    """Good and bad data, a state of texts and one of a table."""
    folder = tmp_path_factory.mktemp("mistakes")
    write(folder / "train.jsonl", examples(40))
    write(folder / "test.jsonl", examples(20, seed=1))
    write(folder / "one.jsonl", examples(8, labels=("food",)))
    write(folder / "inputs.jsonl", [{"input": "ball"}])
    write(folder / "empty.jsonl", [])
    (folder / "blank.jsonl").write_text("\n\n")
    (folder / "binary.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    (folder / "other.txt").write_text("text")
    (folder / "folder").mkdir()
    rows = range(40)
    (folder / "table.csv").write_text("a,b,y\n" + "".join(f"{i},{i * i % 7},{i / 3}\n" for i in rows))
    (folder / "huge.csv").write_text("a,b,y\n" + "".join(f"{i}e200,{i},{i}e200\n" for i in rows))
    (folder / "far.csv").write_text("a,b,y\n1,2,1e300\n2,3,-1e300\n")
    (folder / "words.csv").write_text("a,b,y\n1,2,word\n2,3,2\n")
    for name, data in (("texts", "train.jsonl"), ("numbers", "table.csv")):
        more = () if name == "texts" else ("--target", "y")
        method = ("iterative", "--backbone", str(encoder_folder)) if name == "texts" else ("numeric-parametric",)
        command = ("adapt", *method, "--data", str(folder / data), "--output", str(folder / name), "--quiet", *more)
        subprocess.run([sys.executable, "-m", "iai_hf.cli", *command], check=True, capture_output=True)
    (folder / "encoder").symlink_to(encoder_folder)
    (folder / "causal").symlink_to(causal_folder)
    return folder


@pytest.fixture
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(root)
    before = contents(root)
    yield root
    assert contents(root) == before


TEXTS = "adapt iterative --backbone encoder --data train.jsonl --output out"
TABLE = "adapt numeric-parametric --data table.csv --output out"
GO_ON = "adapt texts --data train.jsonl --output out"
PREDICT = "predict texts --data train.jsonl --output out/p.jsonl"
COMPARE = "compare --data train.jsonl --test test.jsonl --output out --backbone encoder"
MISTAKES = {
    # numbers and names
    f"{TEXTS} --chunk-size -1": "chunk-size",
    f"{TEXTS} --max-tokens -5": "max-tokens",
    f"{TEXTS} --shuffle-seed -3": "shuffle-seed",
    f"{TEXTS} --labels ,": "names none",
    f"{TEXTS} --kind generation": "classification",
    f"{TEXTS} --set =5": "KEY=VALUE",
    f"{TEXTS} --set half_life": "KEY=VALUE",
    f"{TEXTS} --set half_life=nan": "half_life is",
    f"{TEXTS} --set max_tokens=few": "'few'; expected int or NoneType",
    f"{TEXTS} --set weights=nowhere": "no weights 'nowhere'",
    "adapt lora --backbone causal --data train.jsonl --output out --set learning_rate=inf": "finite",
    # misspelt
    "adapt iterativ --data train.jsonl --output out": "did you mean 'iterative'?",
    f"{TEXTS} --set half_live=5": "did you mean 'half_life'?",
    f"{TEXTS} --kind clasification": "did you mean 'classification'? (--kind)",
    f"{TEXTS} --output-column Outputs": "did you mean 'output'?",
    f"{TEXTS} --shufle-seed 1": "--shuffle-seed",
    "labels texts --rename Sport=games --output out": "did you mean 'sports'?",
    # what is written to several files
    f"{TEXTS} --output -": "expected a folder",
    "merge texts texts --output -": "expected a folder",
    # what can't be watched
    f"{TEXTS} --watch --set half_life=5": "half_life is 5; give one",
    f"{TEXTS} --watch --set depth=1": "depth is 1",
    f"{TEXTS} --watch --set watch=no": "give one of them",
    f"{TABLE} --target y --watch": "'numeric-parametric' notices no changes",
    "adapt lora --backbone causal --data train.jsonl --output out --watch": "iterative-explicit",
    f"{GO_ON} --watch": "is not watched",
    # data
    f"{TEXTS} --data one.jsonl --output out/a/b": "one label",
    f"{TEXTS} --data folder": "folder",
    f"{TEXTS} --data other.txt": "suffix",
    f"{TEXTS} --data binary.jsonl": "UTF-8",
    f"{TEXTS} --data blank.jsonl": "no examples",
    f"{TEXTS} --test empty.jsonl": "empty",
    f"{TEXTS} --test inputs.jsonl": "output",
    f"{TEXTS} --data inputs.jsonl": "output",
    f"{TABLE}": "--target",
    f"{TABLE} --target z": "z",
    f"{TABLE} --target y --data huge.csv": "not finite",
    # a method, a state and a backbone that do not belong together
    f"{TABLE} --target y --backbone encoder": "reads numbers, the backbone",
    f"{TEXTS} --backbone numeric/llama": "reads texts, the backbone numeric/llama numbers",
    f"{TEXTS} --backbone folder": "folder",
    f"{TEXTS} --backbone other.txt": "other.txt",
    f"{GO_ON} --backbone causal": "belongs to",
    f"{GO_ON} --set half_life=5": "another configuration",
    # what would be lost
    "predict texts --data test.jsonl --output train.jsonl": "is not a file of predictions",
    "predict texts --data test.jsonl --output numbers/state.safetensors": "is not a file of predictions",
    "evaluate texts --data test.jsonl --output numbers/config.json": "is not a file of metrics",
    "audit texts --data train.jsonl --output test.jsonl": "is not a file of findings",
    f"{GO_ON} --target y --data table.csv": "the state reads texts",
    "adapt numbers --data table.csv --target a --output out": "is a column that the state reads",
    "adapt folder --data train.jsonl --output out": "config.json",
    "adapt train.jsonl --data train.jsonl --output out": "train.jsonl",
    # nothing where something is expected
    "adapt iterative --data train.jsonl --backbone encoder --output ''": "behind '--output'",
    "adapt iterative --data train.jsonl --backbone '' --output out": "behind '--backbone'",
    "adapt '' --data train.jsonl --output out": "behind 'adapt'",
    "info ''": "behind 'info'",
    # outputs
    f"{TEXTS} --output train.jsonl": "can't write",
    f"{TEXTS} --output texts": "--resume",
    f"{PREDICT} --output folder": "is a folder",
    f"{PREDICT} --output other.txt/p.jsonl": "can't write",
    "predict folder --data train.jsonl --output out/p.jsonl": "no task state",
    f"{PREDICT} --input-column zz": "zz",
    "predict numbers --data train.jsonl --output out/p.jsonl": "'a'",
    "evaluate texts --data test.jsonl --output folder": "is a folder",
    "evaluate texts --data test.jsonl --target output": "the state reads texts",
    "evaluate numbers --data table.csv --target a": "is a column that the state reads",
    "evaluate numbers --data far.csv --target y": "the target of example 0",
    "evaluate numbers --data words.csv --target y": "no number",
    "merge texts --output out": "at least two",
    "merge texts numbers --output out": "numeric-parametric",
    "merge texts texts --output train.jsonl": "can't write",
    "export texts --peft out": "no PEFT form",
    "export folder --peft out": "no task state",
    "audit --data one.jsonl --backbone encoder": "at least two",
    "audit --data empty.jsonl --backbone encoder": "is empty",
    "audit --data inputs.jsonl --backbone encoder": "output",
    "audit --data nowhere.jsonl --backbone encoder": "nowhere.jsonl",
    "audit texts --data train.jsonl --input-column zz": "zz",
    "audit texts --data train.jsonl --output folder": "is a folder",
    "audit texts --data train.jsonl --output train.jsonl": "can't be the output",
    "audit texts --data train.jsonl --output a.csv": "expected .jsonl",
    "audit texts --data train.jsonl --plot other.txt/a.png": "can't write",
    "audit texts --data test.jsonl --output-column input": "both to be read from the column",
    "audit numbers --data table.csv --output-column y": "can't tell what it would say without",
    "audit folder --data train.jsonl": "no task state",
    "export texts": "got 0 forms to export; expected one (--peft, --sentence-transformers, --onnx)",
    "export texts --onnx out --sentence-transformers out2": "got 2 forms to export",
    "export texts --onnx folder/../texts": "holds files already",
    "export texts --sentence-transformers train.jsonl": "is a file",
    "export texts --sentence-transformers train.jsonl/out": "can't write",
    "export numbers --onnx out": "no linear map of an encoder's features",
    f"{COMPARE} --methods iterative,nope": "nope",
    f"{COMPARE} --methods iterative,in-context": "causal",
    f"{COMPARE} --methods numeric-parametric": "reads numbers",
    f"{COMPARE} --methods iterative --kind regression": "regression",
    "info other.txt": "task state",
    "info folder": "config.json",
    "push texts no-slash": "user/name",
    "push folder a/b": "config.json",
    "pull a/b --output train.jsonl": "is a file",
    "pull a/b --output out/c": "can't be had",
    "pull a/b --output other.txt/c": "can't write",
    "pull gpt2 --output out": "user/name",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_changes_nothing(command, here, capsys) -> None:  # type: ignore[no-untyped-def]
    status, out, err = iai(capsys, *(argument.strip("'") for argument in command.split()))
    assert status == 2, (out, err)
    assert "Traceback" not in err
    assert MISTAKES[command] in " ".join(err.split())
    assert err.startswith("Usage") or err.splitlines()[-1].startswith("error: ")
    assert out == ""


def test_a_hyphen_is_standard_output(root, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    for command in (("predict", root / "texts"), ("evaluate", root / "texts"), ("audit", root / "texts")):
        data = root / ("train.jsonl" if command[0] == "audit" else "test.jsonl")
        options = (*command, "--data", data, "--output", "-", "--quiet")
        found = subprocess.run(
            [sys.executable, "-m", "iai_hf.cli", *map(str, options)],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        lines = found.stdout.strip().splitlines() if command[0] != "evaluate" else [found.stdout]
        assert all(isinstance(json.loads(line), dict) for line in lines), found.stdout
    assert not list(tmp_path.iterdir())


def test_a_limit_below_what_was_read_is_told(encoder_folder, tmp_path, capsys, caplog) -> None:  # type: ignore[no-untyped-def]
    data = write(tmp_path / "train.jsonl", examples(40))
    options = adapt(encoder_folder, data, tmp_path / "state", "--chunk-size", 8)
    assert iai(capsys, *options, "--max-examples", 32)[0] == 0
    status, _, err = iai(capsys, *options, "--max-examples", 16, "--resume")
    assert (status, "32 of 16" in err) == (0, False)
    assert "has read 32 rows of this stream, max_examples asks for 16" in caplog.text
    assert TaskState.from_pretrained(tmp_path / "state").header.examples == 32


@pytest.mark.parametrize(
    "described",
    [
        {"base_model_name_or_path": 7},
        {"base_model_name_or_path": ""},
        {"base_model_revision": 7},
        {"method": 7},
        {"config": []},
        {"format_version": None},
    ],
    ids=str,
)
def test_a_damaged_description_is_told(described, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    good = {"method": "iterative", "config": {}, "base_model_name_or_path": "some/model", "format_version": 1}
    (tmp_path / "config.json").write_text(json.dumps(good))
    assert iai(capsys, "info", tmp_path)[0] == 0
    (tmp_path / "config.json").write_text(json.dumps(good | described))
    for command in (("info", tmp_path), ("push", tmp_path, "a/b")):
        status, _, err = iai(capsys, *command)
        assert (status, "holds no amortizer" in err) == (2, True)


def test_a_constant_target_has_a_number_for_its_explained_variance(root, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    data = tmp_path / "constant.csv"
    data.write_text("a,b,y\n" + "".join(f"{i},{i},2.5\n" for i in range(20)))
    command = ("evaluate", root / "numbers", "--data", data, "--target", "y", "--json", "--quiet")
    status, out, _ = iai(capsys, *command)
    assert (status, json.loads(out, parse_constant=pytest.fail)["r2"]) == (0, 0.0)


@pytest.mark.parametrize("word", ["none", "None", "null", "NONE"])
def test_none_is_what_a_person_means_by_it(word, encoder_folder, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    data = write(tmp_path / "train.jsonl", examples(20))
    more = ("--max-tokens", 8, "--set", f"half_life={word}", "--set", f"weights={word}")
    assert iai(capsys, *adapt(encoder_folder, data, tmp_path / "state", *more))[0] == 0
    config = TaskState.from_pretrained(tmp_path / "state").header.config
    assert (config["half_life"], config["weights"], config["max_tokens"]) == (None, None, 8)


@pytest.mark.parametrize(("told", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_keeps_what_it_read(encoder_folder, tmp_path, capsys, told, status) -> None:  # type: ignore[no-untyped-def]
    data = write(tmp_path / "long.jsonl", examples(20000))
    options = adapt(encoder_folder, data, tmp_path / "state", "--chunk-size", 4, "--checkpointing-steps", 25)
    command = [sys.executable, "-m", "iai_hf.cli", *map(str, options)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background ignores Ctrl-C
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not (tmp_path / "state" / "state.safetensors").exists():
        time.sleep(0.01)
    checkpoint = TaskState.from_pretrained(tmp_path / "state").header.examples
    time.sleep(1.5)
    os.kill(process.pid, told)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert ("terminated;" in err) is (told == signal.SIGTERM)
    assert "Traceback" not in err
    assert "--resume" in err
    kept = TaskState.from_pretrained(tmp_path / "state").header
    assert checkpoint < kept.examples < 20000
    assert kept.stream is not None
    assert kept.stream.examples == kept.examples
    more = ("--chunk-size", 4, "--max-examples", kept.examples + 8, "--resume")
    assert iai(capsys, *adapt(encoder_folder, data, tmp_path / "state", *more))[0] == 0
    assert TaskState.from_pretrained(tmp_path / "state").header.examples == kept.examples + 8


def test_two_settings_that_say_other_things_are_refused(encoder_folder, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    data = write(tmp_path / "train.jsonl", examples(16))
    options = adapt(encoder_folder, data, tmp_path / "state", "--set", "max_tokens=16", "--max-tokens", 32)
    status, _, err = iai(capsys, *options)
    assert status == 2
    assert "give one of them" in err
    assert not (tmp_path / "state").exists()
