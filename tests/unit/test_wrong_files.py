"""Files that are not what their names say, columns that are not what they should be: the message says what to do."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest
from conftest import examples

from iai_hf import TaskState
from iai_hf.backbones import load_backbone
from iai_hf.data import Columns, open_stream
from iai_hf.errors import BackboneError, DataError, StateError, meant
from iai_hf.metrics import check_labels
from iai_hf.task import TaskSpec, warn_of_alike

ROWS = examples(24)
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "".join(f"{row['input']},{row['output']}\n" for row in ROWS)
FILES = {
    "packed.jsonl": (gzip.compress(LINES.encode()), "packed by gzip, whatever its name says; unpack it first"),
    "packed.csv": (gzip.compress(TABLE.encode()), "packed by gzip"),
    "sheet.csv": (b"PK\x03\x04\xff\xfe\xfd", "a spreadsheet"),
    "lines.csv": (LINES.encode(), "the first line is JSON: name the file .jsonl"),
    "table.jsonl": (f"input,output\n{TABLE}".encode(), "looks like a table: name it .csv"),
    "no_header.csv": (TABLE.encode(), "is the line with the columns' names missing?"),
    "latin.csv": ("input,output\ncafé,food\n".encode("latin1"), "iconv -f LATIN1 -t UTF-8"),
    "wide.csv": (TABLE.encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_something_else_is_told_what_it_is(name: str, tmp_path: Path) -> None:
    content, told = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as found:
        open_stream(tmp_path / name)
    assert told in str(found.value)


def test_a_misspelt_file_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"did you mean 'train\.jsonl'\?"):
        open_stream(tmp_path / "trian.jsonl")


def test_columns_the_wrong_way_round_are_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"input": f"{row['input']} {number}", "output": row["output"]} for number, row in enumerate(ROWS)]
    assert open_stream(rows, Columns("output", "input")).task() == TaskSpec("generation")
    assert "wrong way round" in caplog.text
    caplog.clear()
    answers = [{"input": f"question {number}", "output": f"answer {number}"} for number in range(40)]
    with caplog.at_level(logging.WARNING):
        assert open_stream(answers).task() == TaskSpec("generation")
    assert not caplog.records


def test_labels_that_are_one_number_written_in_two_ways_are_told(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_alike(("1", "2"), ("1.0", "3.5", "version 1.0"))
    assert caplog.text.count("different classes") == 1
    assert "'1.0'" in caplog.text


def test_labels_that_the_state_does_not_know_are_told_beside_those_that_it_does() -> None:
    with pytest.raises(DataError, match=r"first '0' in example 0 \(it knows 'food', 'music'\)"):
        check_labels(("food", "music"), ["0", "1"])


def test_a_method_is_no_state() -> None:
    with pytest.raises(StateError, match="that is a method, of which a state is to be made first"):
        TaskState.from_pretrained("iterative")


def test_a_backbone_that_nearly_has_its_name_is_told() -> None:
    with pytest.raises(BackboneError, match=r"did you mean 'all-MiniLM-L6-v2'\?"):
        load_backbone("sentence-transformers/all-MiniLM-L6", local_files_only=True)


@pytest.mark.parametrize(("given", "found"), [("iteratve", "iterative"), ("Iterative", "iterative"), ("loora", "lora")])
def test_a_near_name_is_found(given: str, found: str) -> None:
    known = ("iterative", "in-context", "lora", "sgd")
    assert meant(given, known) == f"; did you mean {found!r}?"
    assert meant("transformer", known) == ""
