"""The command line, as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import LABELS, examples

from iai_hf import AutoAmortizer, TaskState, cli


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "train.jsonl", examples(40))


@pytest.fixture
def test_data(tmp_path: Path) -> Path:
    return write(tmp_path / "test.jsonl", examples(20, seed=1))


def iai(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command run in this process."""
    before = sys.argv
    sys.argv = ["iai", *map(str, arguments)]
    try:
        cli.main()
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def adapt(folder: Path, data: Path, output: Path, *more: object) -> tuple[object, ...]:
    return ("adapt", "iterative", "--backbone", folder, "--data", data, "--output", output, "--quiet", *more)


def test_adapt_evaluate_predict_info(encoder_folder, data, test_data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    state = tmp_path / "state"
    status, out, _ = iai(capsys, *adapt(encoder_folder, data, state, "--chunk-size", 8, "--json"))
    assert status == 0
    assert json.loads(out)["examples"] == 40
    status, out, _ = iai(
        capsys, "evaluate", state, "--data", test_data, "--quiet", "--json", "--output", tmp_path / "m.json"
    )
    metrics = json.loads(out)
    assert status == 0
    assert metrics == json.loads((tmp_path / "m.json").read_text())
    assert set(metrics) >= {"accuracy", "macro_f1", "negative_log_likelihood", "calibration_error"}
    status, _, _ = iai(capsys, "predict", state, "--data", test_data, "--output", tmp_path / "p.jsonl", "--quiet")
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    answers = [row["output"] for row in examples(20, seed=1)]
    hits = sum(row["prediction"] == answer for row, answer in zip(rows, answers, strict=True))
    assert status == 0
    assert hits / len(rows) == pytest.approx(metrics["accuracy"])
    status, out, _ = iai(capsys, "info", state)
    assert status == 0
    assert "iterative" in out
    assert "sports" in out


def test_a_state_leaves_as_a_peft_adapter(causal_folder, encoder_folder, data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    state, adapter = tmp_path / "state", tmp_path / "adapter"
    options = ("--backbone", causal_folder, "--data", data, "--output", state, "--set", "layers=1", "--quiet")
    assert iai(capsys, "adapt", "lm-state", *options)[0] == 0
    status, out, _ = iai(capsys, "export", state, "--peft", adapter, "--json")
    assert status == 0
    assert json.loads(out)["bytes"] == sum(path.stat().st_size for path in adapter.iterdir())
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "LORA"
    before = (adapter / "adapter_model.safetensors").read_bytes()
    status, _, err = iai(capsys, "export", state, "--peft", adapter)
    assert (status, "holds an adapter already" in err) == (2, True)
    assert (adapter / "adapter_model.safetensors").read_bytes() == before
    iai(capsys, *adapt(encoder_folder, data, tmp_path / "features"))
    status, _, err = iai(capsys, "export", tmp_path / "features", "--peft", tmp_path / "other")
    assert (status, "no PEFT form" in err) == (2, True)
    status, _, err = iai(capsys, "export", tmp_path / "nowhere", "--peft", tmp_path / "other")
    assert (status, "no task state" in err) == (2, True)


def test_a_watched_stream_tells_where_it_changed(encoder_folder, tmp_path, capsys, caplog) -> None:  # type: ignore[no-untyped-def]
    moved = dict(zip(LABELS, [*LABELS[1:], LABELS[0]], strict=True))
    later = [{**row, "output": moved[row["output"]]} for row in examples(96, seed=1)]
    data, state = write(tmp_path / "train.jsonl", examples(256) + later), tmp_path / "state"
    command = adapt(encoder_folder, data, state, "--chunk-size", 32, "--json")
    assert iai(capsys, *command, "--watch", "--max-examples", 256)[0] == 0
    status, _, err = iai(capsys, *command, "--resume")
    assert (status, "go on with it as it began (--watch)" in err) == (2, True)
    status, out, _ = iai(capsys, *command, "--watch", "--resume")
    (change,) = json.loads(out)["changes"]
    assert (status, change["kind"]) == (0, "meaning")
    assert 256 < change["noticed"] <= 352
    assert change["told"] in caplog.text
    assert change["told"] in iai(capsys, "info", state)[1]


def test_an_audit_is_a_table_lines_and_a_picture(encoder_folder, data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    state, lines, plot = tmp_path / "state", tmp_path / "audit.jsonl", tmp_path / "audit.png"
    assert iai(capsys, *adapt(encoder_folder, data, state))[0] == 0
    status, out, _ = iai(capsys, "audit", state, "--data", data, "--output", lines, "--plot", plot, "--quiet")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert status == 0
    assert "likelier" in out
    assert f"{len(rows):,} examples: " in out
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(line["row"] for line in found) == list(range(len(rows)))
    assert all(rows[line["row"]] == {"input": line["input"], "output": line["output"]} for line in found)
    status, out, _ = iai(capsys, "audit", "--data", data, "--backbone", encoder_folder, "--quiet", "--json")
    assert status == 0
    assert json.loads(out)["examples"] == len(rows)
    assert sorted(path.name for path in tmp_path.iterdir() if path != data) == ["audit.jsonl", "audit.png", "state"]


def test_a_state_leaves_as_a_model(encoder_folder, data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    state, model = tmp_path / "state", tmp_path / "model"
    assert iai(capsys, *adapt(encoder_folder, data, state))[0] == 0
    status, out, _ = iai(capsys, "export", state, "--sentence-transformers", model, "--json")
    assert status == 0
    files = [path for path in model.rglob("*") if path.is_file()]
    assert json.loads(out) == {"output": str(model), "bytes": sum(path.stat().st_size for path in files)}
    assert json.loads((model / "config.json").read_text())["dtype"] == "float32"
    status, _, err = iai(capsys, "export", state, "--sentence-transformers", model)
    assert (status, "holds files already" in err) == (2, True)


def test_answers_follow_settings_of_answering_and_the_dtype(causal_folder, tmp_path, capsys, caplog) -> None:  # type: ignore[no-untyped-def]
    rows = [{"input": row["input"], "output": f"{row['output']} of the {row['input']}"} for row in examples(8)]
    data, state, output = write(tmp_path / "free.jsonl", rows), tmp_path / "state", tmp_path / "answers.jsonl"
    common = ("--data", data, "--dtype", "float32")
    made = ("adapt", "in-context", "--backbone", causal_folder, *common, "--output", state, "--set", "max_new_tokens=3")
    assert iai(capsys, *made)[0] == 0
    assert "max_new_tokens=12" in caplog.text  # what would do
    lengths = []
    for settings in ((), ("--set", "max_new_tokens=12")):
        assert iai(capsys, "predict", state, *common, *settings, "--output", output)[0] == 0
        lengths.append(sum(len(json.loads(line)["prediction"]) for line in output.read_text().splitlines()))
    assert lengths[1] > lengths[0]
    assert iai(capsys, "evaluate", state, *common, "--set", "max_new_tokens=12")[0] == 0
    status, _, err = iai(capsys, "predict", state, *common, "--set", "demonstration_tokens=12", "--output", output)
    assert status == 2
    assert "max_new_tokens" in err


def test_a_state_goes_on_with_more_data(encoder_folder, data, test_data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    iai(capsys, *adapt(encoder_folder, data, tmp_path / "one"))
    command = ("adapt", tmp_path / "one", "--data", test_data, "--output", tmp_path / "two", "--quiet")
    status, _, err = iai(capsys, *command)
    assert (status, err) == (0, "")
    assert TaskState.from_pretrained(tmp_path / "two").header.examples == 60


def test_unlabelled_texts_are_read_where_that_is_asked(encoder_folder, data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    texts = write(tmp_path / "texts.jsonl", [{"input": row["input"]} for row in examples(30, seed=4)])
    sparse = tmp_path / "sparse.csv"
    rows = [row["input"] + "," + (row["output"] if number < 20 else "") for number, row in enumerate(examples(30))]
    sparse.write_text("\n".join(["input,output", *rows]) + "\n")
    state = tmp_path / "state"
    run = adapt(encoder_folder, data, state, "--chunk-size", 8, "--json", "--unlabelled", texts)
    status, out, _ = iai(capsys, *run, "--test", data, "--max-examples", 16)
    described = json.loads(out)
    assert (status, described["examples"], described["counts"]["unlabelled"]) == (0, 16, 30)
    status, _, err = iai(capsys, *adapt(encoder_folder, data, state, "--chunk-size", 8, "--resume"))
    assert status == 2
    assert "same unlabelled text" in err
    status, out, _ = iai(capsys, *run, "--test", data, "--resume")
    assert (status, json.loads(out)["examples"]) == (0, 40)
    curve = json.loads((state / "evaluation.json").read_text())["curve"]
    assert {16, 40} <= {point["examples"] for point in curve}
    other = tmp_path / "other"
    status, _, err = iai(capsys, *adapt(encoder_folder, sparse, other))
    assert status == 2
    assert "output" in err
    assert not (other / "state.safetensors").exists()
    status, out, _ = iai(capsys, *adapt(encoder_folder, sparse, other, "--allow-missing-outputs", "--json"))
    described = json.loads(out)
    assert (status, described["examples"], described["counts"]["unlabelled"]) == (0, 20, 10)
    answers = {}
    for name, more in (("plain", ()), ("together", ("--transductive",))):
        output = tmp_path / f"{name}.jsonl"
        status, _, _ = iai(capsys, "predict", state, "--data", texts, "--output", output, "--quiet", *more)
        answers[name] = [json.loads(line)["probability"] for line in output.read_text().splitlines()]
        assert (status, len(answers[name])) == (0, 30)
    assert answers["plain"] != answers["together"]
    implicit = ("adapt", "iterative-implicit", *adapt(encoder_folder, data, tmp_path / "implicit")[2:])
    status, _, err = iai(capsys, *implicit, "--unlabelled", texts)
    assert status == 2
    assert "can't take rows without a label" in err


def test_compare_leaves_a_table_results_and_a_picture(causal_folder, data, test_data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    methods = "iterative,in-context,prompt-tuning"
    command = ("compare", "--data", data, "--test", test_data, "--methods", methods, "--backbone", causal_folder)
    status, out, err = iai(
        capsys, *command, "--output", tmp_path / "cmp", "--chunk-size", 8, "--max-examples", "prompt-tuning=16"
    )
    assert status == 0, err
    results = json.loads((tmp_path / "cmp" / "results.json").read_text())
    assert [run["method"] for run in results["methods"]] == methods.split(",")
    assert [run["examples"] for run in results["methods"]] == [40, 40, 16]
    for run in results["methods"]:
        assert len(run["curve"]) > 1
        assert run["state_bytes"] == TaskState.from_pretrained(tmp_path / "cmp" / run["method"]).nbytes
    assert (tmp_path / "cmp" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "prompt" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("adapt", "no-such-method", "--data", "{data}", "--output", "{out}"), "iterative"),
        (("adapt", "iterative", "--data", "none.jsonl", "--output", "{out}"), "no file"),
        (("adapt", "iterative", "--data", "{data}", "--output", "/proc/x", "--backbone", "{encoder}"), "can't write"),
        (("adapt", "iterative", "--data", "{data}", "--output", "{out}", "--backbone", "none/such"), "network"),
        (
            ("adapt", "iterative", "--data", "{data}", "--output", "{out}", "--backbone", "{encoder}", "--set", "a=1"),
            "unknown",
        ),
        (
            ("adapt", "iterative", "--data", "{data}", "--output", "{out}", "--backbone", "{encoder}", "--set", "a"),
            "KEY=VALUE",
        ),
        (
            ("adapt", "iterative", "--data", "{data}", "--output", "{out}", "--backbone", "{encoder}", "--kind", "odd"),
            "kind",
        ),
        (
            (
                "adapt",
                "iterative",
                "--data",
                "{data}",
                "--output",
                "{out}",
                "--backbone",
                "{encoder}",
                "--input-column",
                "q",
            ),
            "found",
        ),
        (("adapt", "iterative", "--data", "{one}", "--output", "{out}", "--backbone", "{encoder}"), "one label"),
        (("adapt", "in-context", "--data", "{data}", "--output", "{out}", "--backbone", "{encoder}"), "causal"),
        (("adapt", "iterative", "--data", "{data}", "--output", "{out}", "--chunk-size", "0"), "chunk-size"),
        (("predict", "{out}", "--data", "{data}", "--output", "{out}/p.jsonl"), "no task state"),
        (("evaluate", "{state}", "--data", "{unseen}"), "not seen"),
        (("evaluate", "{state}", "--data", "{empty}"), "empty"),
        (("compare", "--data", "{data}", "--test", "{data}", "--output", "{out}", "--methods", ","), "names none"),
        (
            ("compare", "--data", "{data}", "--test", "{data}", "--output", "{out}", "--max-examples", "x=1"),
            "max-examples",
        ),
        (("info", "{out}/nothing"), "nothing at"),
        (("predict", "{state}", "--data", "{data}", "--output", "{out}.jsonl", "--dtype", "int8"), "float32"),
        (("evaluate", "{state}", "--data", "{data}", "--dtype", "quarter"), "float32"),
        (("evaluate", "{state}", "--data", "{data}", "--set", "max_tokens=3"), "made with"),
    ],
)
def test_a_users_mistake_is_one_clear_line(arguments, words, encoder_folder, data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    iai(capsys, *adapt(encoder_folder, data, tmp_path / "state"))
    places = {
        "data": data,
        "out": tmp_path / "out",
        "encoder": encoder_folder,
        "state": tmp_path / "state",
        "one": write(tmp_path / "one.jsonl", examples(8, labels=LABELS[:1])),
        "unseen": write(tmp_path / "unseen.jsonl", [{"input": "ball", "output": "chess"}]),
        "empty": write(tmp_path / "empty.jsonl", []),
    }
    status, _, err = iai(capsys, *(argument.format(**places) for argument in arguments))
    assert status == 2
    assert words in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "state.safetensors").exists()


def test_a_standing_state_is_not_overwritten(encoder_folder, data, test_data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    iai(capsys, *adapt(encoder_folder, data, tmp_path / "state"))
    before = (tmp_path / "state" / "state.safetensors").read_bytes()
    status, _, err = iai(capsys, *adapt(encoder_folder, test_data, tmp_path / "state"))
    assert (status, "--resume" in err) == (2, True)
    status, _, err = iai(capsys, *adapt(encoder_folder, test_data, tmp_path / "state", "--resume"))
    assert (status, "another dataset" in err, "leave resume out" in err) == (2, True, True)
    status, _, _ = iai(capsys, "adapt", tmp_path / "state", "--data", test_data, "--output", tmp_path / "more")
    assert status == 0, "as the message says"
    assert (tmp_path / "state" / "state.safetensors").read_bytes() == before


def test_predictions_overwrite_nothing_that_is_read(encoder_folder, data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    state = tmp_path / "state"
    iai(capsys, *adapt(encoder_folder, data, state))
    before = {path: path.read_bytes() for path in (data, state / "state.safetensors", state / "config.json")}
    (tmp_path / "link.jsonl").symlink_to(data)
    for output in (*before, tmp_path / "link.jsonl", tmp_path):
        for command in ("predict", "evaluate"):
            status, _, err = iai(capsys, command, state, "--data", data, "--output", output, "--quiet")
            assert (status, str(output) in err) == (2, True)
    assert before == {path: path.read_bytes() for path in before}


def test_an_amortizers_folder_takes_no_state(encoder, encoder_folder, data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    mine = AutoAmortizer.from_pretrained("iterative", backbone=encoder).save_pretrained(tmp_path / "mine")
    before = sorted((path.name, path.read_bytes()) for path in mine.iterdir())
    status, _, err = iai(capsys, "adapt", mine, "--data", data, "--output", mine, "--quiet")
    assert (status, "not the config.json of a task state" in err) == (2, True)
    assert sorted((path.name, path.read_bytes()) for path in mine.iterdir()) == before


def test_a_killed_run_resumes_to_the_same_state_bit_for_bit(encoder_folder, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    data = write(tmp_path / "long.jsonl", examples(3000))
    options = ("--chunk-size", 4, "--checkpointing-steps", 1, "--shuffle-seed", 3, "--resume")
    iai(capsys, *adapt(encoder_folder, data, tmp_path / "whole", *options))
    whole = TaskState.from_pretrained(tmp_path / "whole")
    command = [
        sys.executable,
        "-m",
        "iai_hf.cli",
        *map(str, adapt(encoder_folder, data, tmp_path / "killed", *options)),
    ]
    file = tmp_path / "killed" / "state.safetensors"
    seen = -1
    for kill in range(3):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            # Wait for progress past the last kill, then kill at no particular moment.
            if file.exists() and TaskState.from_pretrained(file.parent).header.examples > seen + 40:
                break
            time.sleep(0.01)
        time.sleep(0.013 * kill)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        state = TaskState.from_pretrained(file.parent)
        assert seen < state.header.examples
        seen = state.header.examples
    assert seen < 3000, "the run ended before it was killed; make the data longer"
    assert iai(capsys, *adapt(encoder_folder, data, tmp_path / "killed", *options))[0] == 0
    killed = TaskState.from_pretrained(tmp_path / "killed")
    assert killed.header == whole.header
    assert all(torch.equal(killed.tensors[name], whole.tensors[name]) for name in whole.tensors)


def test_importing_the_package_and_the_command_imports_no_torch() -> None:
    code = (
        "import sys, iai_hf, iai_hf.cli; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_figures_of_what_a_state_has_learned_from_are_told(encoder_folder, tmp_path, capsys, caplog) -> None:  # type: ignore[no-untyped-def]
    data, other = write(tmp_path / "train.jsonl", examples(40)), write(tmp_path / "test.jsonl", examples(20, seed=1))
    command = ("adapt", "iterative", "--backbone", encoder_folder, "--data", data, "--output", tmp_path / "state")
    assert iai(capsys, *command)[0] == 0
    for tested, flatters in ((data, True), (other, False)):
        caplog.clear()
        assert iai(capsys, "evaluate", tmp_path / "state", "--data", tested)[0] == 0
        assert ("has learned from" in caplog.text) == flatters


def test_predictions_are_written_anew_over_predictions(encoder_folder, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    data, out = write(tmp_path / "train.jsonl", examples(40)), tmp_path / "out.jsonl"
    assert (
        iai(capsys, "adapt", "iterative", "--backbone", encoder_folder, "--data", data, "--output", tmp_path / "s")[0]
        == 0
    )
    for _ in range(2):
        assert iai(capsys, "predict", tmp_path / "s", "--data", data, "--output", out)[0] == 0
    assert len(out.read_text().splitlines()) == 40


def test_figures_of_queries_that_inform_each_other_are_those_of_their_answers(  # type: ignore[no-untyped-def]
    encoder_folder, tmp_path, capsys
) -> None:
    data, test = write(tmp_path / "train.jsonl", examples(12)), write(tmp_path / "test.jsonl", examples(40, seed=1))
    command = ("adapt", "iterative", "--backbone", encoder_folder, "--data", data, "--output", tmp_path / "state")
    assert iai(capsys, *command, "--quiet")[0] == 0
    out = tmp_path / "answers.jsonl"
    told = {}
    for more in ((), ("--transductive",)):
        _, text, _ = iai(capsys, "evaluate", tmp_path / "state", "--data", test, *more, "--json", "--quiet")
        told[more] = json.loads(text)
        assert iai(capsys, "predict", tmp_path / "state", "--data", test, *more, "--output", out, "--quiet")[0] == 0
        answers = [json.loads(line)["prediction"] for line in out.read_text().splitlines()]
        right = sum(a == row["output"] for a, row in zip(answers, examples(40, seed=1), strict=True))
        assert told[more]["accuracy"] == pytest.approx(right / 40)
    assert told[()] != told[("--transductive",)]


def test_answers_with_a_stated_error_are_written_and_counted(encoder_folder, data, test_data, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    state, out = tmp_path / "state", tmp_path / "answers.jsonl"
    assert iai(capsys, *adapt(encoder_folder, data, state))[0] == 0
    asked = ("--data", test_data, "--coverage", 0.9, "--abstain", 0.5, "--quiet")
    status, text, _ = iai(capsys, "evaluate", state, *asked, "--json")
    figures = json.loads(text)
    assert status == 0
    assert iai(capsys, "predict", state, *asked, "--output", out)[0] == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    right = [row["output"] for row in examples(20, seed=1)]
    assert 0 < sum(row["prediction"] is None for row in rows) < 20
    assert figures["answered"] == sum(row["prediction"] is not None for row in rows) / 20
    given = [row["prediction"] == answer for row, answer in zip(rows, right, strict=True) if row["prediction"]]
    assert figures["accuracy_of_answered"] == pytest.approx(sum(given) / len(given))
    assert all((row["set"] is None) == (row["prediction"] is None) for row in rows)
    sets = [(row["set"], answer) for row, answer in zip(rows, right, strict=True) if row["set"] is not None]
    assert figures["coverage"] == pytest.approx(sum(answer in labels for labels, answer in sets) / len(sets))
    assert figures["labels_a_set"] == pytest.approx(sum(len(labels) for labels, _ in sets) / len(sets))
    _, text, _ = iai(capsys, "evaluate", state, "--data", test_data, "--quiet", "--json")
    assert json.loads(text) == {key: figures[key] for key in json.loads(text)}
    before = out.read_bytes()
    for wrong, message in (
        (("--coverage", 1.5), "expected a share between 0 and 1"),
        (("--abstain", 0.001), "takes at least 999 examples"),
        (("--coverage", 0.9, "--transductive"), "leave transductive out"),
    ):
        status, _, err = iai(capsys, "predict", state, "--data", test_data, *wrong, "--output", out, "--quiet")
        assert (status, message in err, err.count("\n")) == (2, True, 1)
    assert out.read_bytes() == before
