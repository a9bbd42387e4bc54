"""Layouts: what a shuffled read takes on disk is told before, refused where it is not there, and made once."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from conftest import examples

from iai_hf import layout
from iai_hf.data import Columns, Record, open_stream
from iai_hf.errors import DataError

Usage = namedtuple("Usage", "total used free")
ROWS = [
    {"input": f"{row['input']} Ünicode “{number}”", "output": row["output"]}
    for number, row in enumerate(examples(2500))
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache" / "iai_hf"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(path: Path, seed: int | None, **columns: Any) -> list[Record]:
    return list(open_stream(path, Columns(**columns), shuffle_seed=seed).records())


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_layout_has_all_rows_takes_what_was_told_and_is_made_once(
    cache: Path, tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "iai_hf")
    path = write(tmp_path / f"data{suffix}", ROWS)
    found = records(path, 0)
    assert found != records(path, None)
    assert sorted(found) == sorted(records(path, None))
    needed = layout.bytes_needed(open_stream(path))
    (made,) = cache.glob("*.arrow")
    assert 0.8 * needed <= made.stat().st_size <= needed
    (told,) = (line for line in caplog.messages if "takes" in line)
    assert f"takes {layout.shown(needed)} on disk, in {cache}, where" in told
    monkeypatch.setattr(layout, "_write", None)  # it stands there, and is not made again
    assert records(path, 0) == found


def test_lists_numbers_and_missing_outputs_come_back(tmp_path: Path) -> None:
    lists = write(tmp_path / "lists.jsonl", [{"input": "a", "output": ["x", "y"]}, {"input": "b", "output": []}])
    assert sorted(records(lists, 0)) == [("a", ("x", "y")), ("b", ())]
    both = write(tmp_path / "both.jsonl", [{"input": "a", "output": None}, {"input": "b", "output": ["x"]}])
    found = records(both, 0, allow_missing_outputs=True)
    assert sorted(found, key=lambda record: record.input) == [("a", None), ("b", ("x",))]
    missing = write(tmp_path / "missing.jsonl", [{"input": "a", "output": None}, {"input": "b", "output": "x"}])
    found = records(missing, 0, allow_missing_outputs=True)
    assert sorted(found, key=lambda record: record.input) == [("a", None), ("b", "x")]
    table = write(
        tmp_path / "table.jsonl", [{"one": 1, "two": 0.1, "output": 3}, {"one": 2, "two": 1e300, "output": 4}]
    )
    assert sorted(records(table, 0, numbers=())) == sorted(records(table, None, numbers=()))


def test_what_has_no_room_is_refused_before_anything_is_written(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "data.jsonl", ROWS)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 10**9 - layout.ROOM, layout.ROOM))
    needed = layout.shown(layout.bytes_needed(open_stream(path)))
    with pytest.raises(DataError, match=rf"takes {needed} there, and 50\.0 MB are free; .*HF_DATASETS_CACHE"):
        open_stream(path, shuffle_seed=0)
    assert not list(cache.glob("*.arrow*"))
    assert len(records(path, None)) == len(ROWS)  # as it stands it is read without any


FULL = """
import resource, signal, sys
import datasets
from iai_hf.data import open_stream
from iai_hf.errors import DataError
datasets.config.HF_DATASETS_CACHE = sys.argv[2]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing fails as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
try:
    open_stream(sys.argv[1], shuffle_seed=0)
except DataError as error:
    print(error)
"""


def test_a_disk_that_fills_meanwhile_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", ROWS)
    command = [sys.executable, "-c", FULL, str(path), str(cache.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "can't be written there: File too large; free space" in done.stdout, done.stderr
    assert not list(cache.glob("*arrow")) + list(cache.glob(".*partial"))
    assert len(records(path, 0)) == len(ROWS)


def test_what_a_killed_run_left_goes(cache: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", ROWS)
    records(path, 0)
    (made,) = cache.glob("*.arrow")
    made.rename(cache / f".{made.name}.0123.partial")
    assert len(records(path, 0)) == len(ROWS)
    assert not list(cache.glob(".*partial"))


def test_the_same_bytes_of_another_kind_are_laid_out_anew(tmp_path: Path) -> None:
    text = "input\toutput,x\n" + "".join(f"a{i}\tb{i % 2},c\n" for i in range(8))
    (tmp_path / "q.csv").write_text(text)
    (tmp_path / "q.tsv").write_text(text)
    named = {"input": "input", "output": "output,x"}
    assert len(records(tmp_path / "q.tsv", 0, **named)) == 8
    for seed in (None, 0):
        with pytest.raises(DataError):
            records(tmp_path / "q.csv", seed, **named)
