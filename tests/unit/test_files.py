"""What is written and where: links are followed, pipes are streams, and nothing of others is overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import examples

from iai_hf import AutoAmortizer, compare
from iai_hf.backbones import Backbone
from iai_hf.errors import StateError
from iai_hf.files import check_output, claimed, write_whole


def test_a_link_is_followed_and_permissions_stay(tmp_path: Path) -> None:
    real, link, dangling = tmp_path / "real", tmp_path / "link", tmp_path / "dangling"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to("real")
    dangling.symlink_to("made")
    write_whole(link, b"new")
    write_whole(dangling, b"first")
    assert (link.is_symlink(), real.read_bytes(), real.stat().st_mode & 0o777) == (True, b"new", 0o640)
    assert (dangling.is_symlink(), (tmp_path / "made").read_bytes()) == (True, b"first")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "link", "made", "real"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    check_output(pipe)
    write_whole(pipe, b"content")
    reader.join(10)
    assert read == [b"content"]
    assert pipe.is_fifo()


def test_standard_output_is_written_to_in_its_place(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from iai_hf.files import check_output, write_whole\n"
        "print('before', flush=True); path = Path('/dev/stdout'); check_output(path); write_whole(path, b'rows\\n')\n"
        "print('behind')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "before\nrows\nbehind\n", done.stderr
    with open(tmp_path / "out", "w") as file:
        file.write("first\n")
        file.flush()
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert (tmp_path / "out").read_text() == "first\nbefore\nrows\nbehind\n"


def test_an_output_that_is_a_folder_or_an_input_is_refused(tmp_path: Path) -> None:
    data, same = tmp_path / "data", tmp_path / "same"
    data.touch()
    same.symlink_to("data")
    with pytest.raises(StateError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(StateError, match="read as"):
        check_output(same, "no-such-file", data)
    check_output(tmp_path / "other", data)


def test_a_foreign_config_is_not_overwritten(encoder: Backbone, encoder_folder: Path, tmp_path: Path) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    state = amortizer.adapt(examples(16), progress=False)
    mine, held = amortizer.save_pretrained(tmp_path / "amortizer"), state.save_pretrained(tmp_path / "state")
    before = {path: path.read_bytes() for path in (encoder_folder / "config.json", mine / "config.json")}
    for folder in (encoder_folder, mine):
        with pytest.raises(StateError, match=r"config\.json is not"):
            state.save_pretrained(folder)
        with pytest.raises(StateError, match=r"config\.json is not"):
            amortizer.adapt(examples(16), output=folder, progress=False)
        assert not (folder / "state.safetensors").exists()
    for folder in (encoder_folder, held):
        with pytest.raises(StateError, match=r"config\.json is not"):
            amortizer.save_pretrained(folder)
    assert before == {path: path.read_bytes() for path in before}
    amortizer.save_pretrained(mine)
    state.save_pretrained(held)


def test_two_runs_do_not_share_a_folder(encoder: Backbone, tmp_path: Path) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    held = "from iai_hf.files import claimed; import sys\nwith claimed(sys.argv[1]): print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", held, tmp_path / "state"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(StateError, match="another run"):
        amortizer.adapt(examples(16), output=tmp_path / "state", progress=False)
    other.kill()
    other.wait()
    amortizer.adapt(examples(16), output=tmp_path / "state", progress=False)
    told: list[str] = []

    def second() -> None:
        try:
            with claimed(tmp_path / "state"):
                told.append("held")
        except StateError as error:
            told.append(str(error))

    with claimed(tmp_path / "state"), claimed(tmp_path / "state"):  # the same run may claim it again
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another run" in told[0]


def test_a_folder_in_which_nothing_was_written_is_gone_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), claimed(tmp_path / "new"):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()


def test_runs_of_one_method_are_told_apart(encoder: Backbone, tmp_path: Path) -> None:
    folders = [
        AutoAmortizer.from_pretrained("iterative", backbone=encoder, config={"half_life": life}).save_pretrained(
            tmp_path / place / "mine"
        )
        for place, life in (("a", 5), ("b", 7))
    ]
    methods = [*map(str, folders), "iterative-explicit", "iterative-explicit"]
    results = compare.compare(
        examples(30),
        examples(10, seed=1),
        methods,
        backbone=encoder.name,
        output=tmp_path / "out",
        evaluations=1,
        progress=False,
    )
    names = ["mine", "mine-2", "iterative-explicit", "iterative-explicit-2"]
    assert [run["method"] for run in results["methods"]] == names
    kept = [json.loads((tmp_path / "out" / name / "config.json").read_text())["config"] for name in names[:2]]
    assert [config["half_life"] for config in kept] == [5, 7]
    (tmp_path / "out" / "results.json").write_text("{}")
    with pytest.raises(StateError, match=r"results\.json is not"):
        compare.save(results, tmp_path / "out", "films")


def test_a_state_that_stands_is_not_replaced_by_a_new_one(encoder: Backbone, tmp_path: Path) -> None:
    amortizer = AutoAmortizer.from_pretrained("iterative", backbone=encoder)
    state = amortizer.adapt(examples(16), output=tmp_path, progress=False)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(StateError, match="holds a state already; pass it as `state`"):
        amortizer.adapt(examples(8), output=tmp_path, progress=False)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert amortizer.adapt(examples(8), state, output=tmp_path, progress=False).header.examples == 24
