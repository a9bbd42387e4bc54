"""Runs that are cut off anywhere: by kill -9, a full disk, a file that changes, another run in the same folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pandas
import pytest
import torch
from conftest import examples

from iai_hf import AutoAmortizer, Chunk, TaskSpec, TaskState
from iai_hf.amortizer import Amortizer
from iai_hf.errors import DataError, StateError
from iai_hf.files import STATE_FILE, claimed
from iai_hf.partitions import adapt_partition

ROWS = [{"input": f"{row['input']} {number}", "output": row["output"]} for number, row in enumerate(examples(600))]
OPTIONS: dict[str, Any] = {"chunk_size": 16, "checkpointing_steps": 3, "progress": False}


@pytest.fixture
def amortizer(encoder_folder: Path) -> Amortizer:
    return AutoAmortizer.from_pretrained("iterative", backbone=str(encoder_folder), config={"weights": None})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def assert_same(found: TaskState, expected: TaskState, tolerance: float = 0.0) -> None:
    assert found.header == expected.header
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=tolerance, atol=tolerance)


RUN = """
import os, sys, time
from iai_hf import AutoAmortizer, TaskState, processes
folder, data, output, resume = sys.argv[1:5]
amortizer = AutoAmortizer.from_pretrained("iterative", backbone=folder, config={"weights": None})
if processes.several():
    amortizer.backbone.split_over_processes()
def step(state, chunk):
    if state.header.steps == 10:  # behind a checkpoint, so that something is lost
        os.write(1, f"pid {os.environ.get('RANK', '0')} {os.getpid()}\\n".encode())  # at once: two write
        time.sleep(600)
amortizer.adapt(data, output=output, chunk_size=16, checkpointing_steps=3, progress=False, on_step=step)
"""


@pytest.mark.parametrize("killed", ["the driver", "a worker"])
def test_what_was_saved_before_kill_9_stands_and_goes_on(
    amortizer: Amortizer, encoder_folder: Path, data: Path, tmp_path: Path, killed: str
) -> None:
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if killed == "a worker" else []
    script, output = tmp_path / "run.py", tmp_path / "state"
    script.write_text(RUN)
    command = [sys.executable, *several, str(script), str(encoder_folder), str(data), str(output), ""]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        pids: dict[str, int] = {}
        while len(pids) < (2 if several else 1):
            word, *rest = run.stdout.readline().split() or ["end"]
            assert word == "pid", run.communicate()
            pids[rest[0]] = int(rest[1])
        os.kill(pids["1" if several else "0"], signal.SIGKILL)
        run.communicate(timeout=120)
    assert run.returncode != 0
    state = TaskState.from_pretrained(output)
    assert state.header.examples == 9 * 16
    tolerance = 1e-4 if several else 0.0
    expected = amortizer.adapt(data, **OPTIONS)
    assert_same(amortizer.adapt(data, state, resume=True, output=output, **OPTIONS), expected, tolerance)
    assert_same(TaskState.from_pretrained(output), expected, tolerance)
    assert {path.name for path in output.iterdir()} == {STATE_FILE, "config.json"}


def test_the_partition_of_a_worker_that_was_lost_is_read_again(encoder_folder: Path) -> None:
    settings = {"method": "iterative", "task": TaskSpec(), "backbone": str(encoder_folder), "chunk_size": 16}

    class Lost(Exception):
        pass

    def frames(fails: bool) -> Iterator[pandas.DataFrame]:
        yield pandas.DataFrame(ROWS[:40])
        if fails:
            raise Lost
        yield pandas.DataFrame(ROWS[40:64])

    with pytest.raises(Lost):
        list(adapt_partition(frames(True), **settings))  # type: ignore[arg-type]
    found = [
        TaskState.from_bytes(next(adapt_partition(part, **settings))["state"][0])  # type: ignore[arg-type]
        for part in (frames(False), pandas.DataFrame(ROWS[:64]))
    ]
    assert_same(found[0], found[1])


FULL = """
import resource, signal, sys
from iai_hf import AutoAmortizer, TaskState
from iai_hf.errors import StateError
folder, data, output = sys.argv[1:]
amortizer = AutoAmortizer.from_pretrained("iterative", backbone=folder, config={"weights": None})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails as on a full disk
def fill(state, chunk):
    if state.header.steps == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    amortizer.adapt(data, output=output, chunk_size=16, checkpointing_steps=3, progress=False, on_step=fill)
except StateError as error:
    print(error)
"""


def test_a_disk_that_fills_leaves_what_was_saved(
    amortizer: Amortizer, encoder_folder: Path, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "state"
    command = [sys.executable, "-c", FULL, str(encoder_folder), str(data), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "File too large; what stood there before is untouched: free space" in done.stdout, done.stderr
    assert {path.name for path in output.iterdir()} == {STATE_FILE, "config.json"}
    state = TaskState.from_pretrained(output)
    assert state.header.examples == 3 * 16
    assert_same(amortizer.adapt(data, state, resume=True, output=output, **OPTIONS), amortizer.adapt(data, **OPTIONS))


def grow(path: Path) -> None:
    with path.open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")


def rewrite(path: Path) -> None:
    path.write_text(path.read_text().replace("sport", "trops"))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_text(json.dumps(ROWS[0]) + "\n")
    other.rename(path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (grow, "it had [0-9,]+ bytes and has"),
        (cut, "it had [0-9,]+ bytes and has"),
        (rewrite, "it has other content"),
        (replace, "it had [0-9,]+ bytes and has"),
        (Path.unlink, "can't read .*No such file"),
    ],
)
def test_a_file_that_changes_during_the_run_is_refused_and_told_how_far_it_was_read(
    amortizer: Amortizer,
    data: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows, output = data.read_text().splitlines(), tmp_path / "state"

    def at_once(state: TaskState, chunk: Chunk) -> None:
        if state.header.steps == 1:
            change(data)

    with pytest.raises(DataError, match=told) as caught:
        amortizer.adapt(data, on_step=at_once, output=output, **OPTIONS)
    state = TaskState.from_pretrained(output)
    read = state.header.examples
    assert f"{output} holds the state of the first {read:,} rows" in caplog.text
    assert 16 <= read < len(ROWS)
    if change is not Path.unlink:
        assert "rows were read as they had been, none after that" in str(caught.value)
    # What was read is of the file as it was, so that with it as it was the run goes on.
    data.unlink(missing_ok=True)
    data.write_text("\n".join(rows) + "\n")
    assert_same(amortizer.adapt(data, state, resume=True, **OPTIONS), amortizer.adapt(data, **OPTIONS))


def test_a_file_that_was_touched_is_the_same_one(amortizer: Amortizer, data: Path) -> None:
    def touch(state: TaskState, chunk: Chunk) -> None:
        os.utime(data, ns=(state.header.steps, state.header.steps))

    assert_same(amortizer.adapt(data, on_step=touch, **OPTIONS), amortizer.adapt(data, **OPTIONS))


class Unread(list[dict[str, str]]):
    def __iter__(self) -> NoReturn:
        raise AssertionError("it was read")


def test_the_second_of_two_runs_in_a_folder_is_told_before_it_reads_anything(
    amortizer: Amortizer, tmp_path: Path
) -> None:
    ready, done = threading.Event(), threading.Event()

    def hold() -> None:
        with claimed(tmp_path / "state"):
            ready.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    try:
        assert ready.wait(20)
        with pytest.raises(StateError, match="another run writes to"):
            amortizer.adapt(Unread(ROWS), output=tmp_path / "state", **OPTIONS)
    finally:
        done.set()
        other.join()
    with pytest.raises(AssertionError, match="it was read"):
        amortizer.adapt(Unread(ROWS), output=tmp_path / "state", **OPTIONS)
    assert not (tmp_path / "state").exists()
