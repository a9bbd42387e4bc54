"""What users pass as data: no row is lost in silence, and the cause of a refusal is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import pyarrow
import pytest
import torch

from iai_hf.data import Columns, open_stream
from iai_hf.errors import DataError
from iai_hf.task import TaskSpec

NAMES = ["no", "yes"]


def dialogue(mark: str, rows: int = 150) -> str:
    """Texts of which four begin or end with a quotation mark that belongs to them."""
    texts = [f"they said{' ' if mark != ',' else ''} number {i}" for i in range(rows)]
    for i in (20, 100):
        texts[i] = f'"{texts[i]}'
    for i in (60, 130):
        texts[i] = f'{texts[i]}"'
    return f"input{mark}output\n" + "".join(f"{text}{mark}{i % 2}\n" for i, text in enumerate(texts))


@pytest.mark.parametrize(("name", "mark"), [("dialogue.tsv", "\t"), ("dialogue.csv", ",")])
def test_quotes_of_a_text_swallow_no_rows(name: str, mark: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(dialogue(mark))
    with pytest.raises(
        DataError, match=r"line 22: a quotation mark opens a field that ends in line 62.*quotes=False"
    ) as told:
        open_stream(path)
    assert told.value.options == ("quotes",)
    with pytest.raises(DataError, match="line 22"):
        open_stream(path, shuffle_seed=0)
    for seed in (None, 0):
        stream = open_stream(path, Columns(quotes=False), shuffle_seed=seed)
        assert stream.length == 150
        assert sum(record.input.count('"') for record in stream.records()) == 4
    assert open_stream(path, Columns(quotes=True)).length == 150 - 40 - 30  # as the user says


def test_quotes_that_enclose_texts_of_several_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('input,output\n"Dear all, hello\nthere, you\nbye",a\n"one\ntwo, three",b\n"a ""word"", said",a\n')
    texts = [record.input for record in open_stream(path).records()]
    assert texts == ["Dear all, hello\nthere, you\nbye", "one\ntwo, three", 'a "word", said']
    path.write_text('"input","output"\n"x,y\nz","a"\n"u,v\nw","b"\n')  # the header shows that this writer quotes
    assert [record.input for record in open_stream(path).records()] == ["x,y\nz", "u,v\nw"]


def test_a_quotation_mark_over_one_line_end_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text('input\toutput\nfirst\ta\n"open\ta\nclosed"\tb\nlast\tb\n')
    with pytest.raises(DataError, match=r"line 3.*ends in line 4"):
        open_stream(path)
    rows = "".join(f"row {i}\ta\n" for i in range(9))  # one line between them that is no row does not hide the others
    (tmp_path / "odd.tsv").write_text(f'input\toutput\n"open\ta\n{rows}no row\n\nclosed"\tb\n')
    with pytest.raises(DataError, match=r"line 2.*ends in line 14"):
        open_stream(tmp_path / "odd.tsv")
    assert open_stream(path, Columns(quotes=False)).length == 4


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('input\toutput\na\tx\n"b\ty\nc\tx\n', 3),
        ('input\toutput\n"two\nlines"\tx\nb\t"y\nc\tx\n', 4),
        ('input\toutput\n"a ""b"" c"\tx\n"open ""d"" \ty\nc\tx\n', 3),
    ],
)
def test_quotes_that_are_not_closed_are_named_by_their_own_line(content: str, line: int, tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"line {line}: a quotation mark opens a field and none closes it"):
        open_stream(path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'[{"input": "a", "output": "b"}]', r"a JSON array; expected an object a line: jq"),
        ("a.json", b'[\n{"input": "a", "output": "b"}\n]', "a JSON array"),
        ("a.json", b'{\n"input": "a",\n"output": "b"\n}', "JSON over several lines"),
        ("a.jsonl", b'{"input": "a", "output": "b", "output": "c"}\n', "'output' occurs twice"),
        ("a.jsonl", b'{"input": "half \\ud83d", "output": "b"}\n', "line 1: 'input' has half a character"),
        ("a.jsonl", b'{"input": "a", "output": "\\udc00"}\n', "line 1: 'output' has half a character"),
        ("a.jsonl", b'{"input": "a", "output": NaN}\n', "'output' is missing"),
        ("a.jsonl", '{"input": "a", "output": "b"}\n'.encode("utf-16"), "UTF-16"),
        ("a.csv", b"input;output\na;b\n", "separated by semicolons"),
        ("a.csv", b"input;output\na, b;c\n", "separated by semicolons"),
        ("a.csv", b"input\toutput\na\tb\n", "separated by tabs: name it .tsv"),
        ("a.tsv", b"input,output\na,b\n", "separated by commas: name it .csv"),
        ("a.csv", "input,output\na,b\n".encode("utf-16-le"), "zero bytes"),
        ("a.csv", "input,output\na,b\n".encode("utf-16"), "UTF-16"),
        ("a.csv", b"input,output,input\na,b,c\n", "more than one column 'input'"),
        ("a.csv", b'input,output\n"a"b,c\n', "line 2 is no CSV"),
        ("a.jsonl.gz", b"\x1f\x8b", "unpack it first"),
    ],
)
def test_the_cause_is_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for data in (path, str(path)):
        with pytest.raises(DataError, match=words):
            open_stream(data)


@pytest.mark.parametrize("content", ['\ufeff{"input": "a", "output": "b"}\n', '{"input": "a", "output": "b"}\r'])
def test_a_byte_order_mark_and_old_line_ends_are_read(content: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content.encode())
    assert list(open_stream(path).records()) == [("a", "b")]
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffinput,output\ra,b\r".encode())
    assert list(open_stream(path).records()) == [("a", "b")]


def test_half_a_character_is_found_before_the_first_chunk_of_a_list() -> None:
    rows = [{"input": f"text {i}", "output": "a"} for i in range(1000)] + [{"input": "\ud83d", "output": "a"}]
    with pytest.raises(DataError, match=r"row 1000: 'input' has half a character, the lone surrogate U\+D83D"):
        open_stream(rows)


class OnePosition:
    """Iterating goes on where the last iteration stopped, as a reader of a socket or a database cursor does."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.under_way = iter(rows)

    def __iter__(self) -> Iterator[dict[str, str]]:
        yield from self.under_way


@pytest.mark.parametrize("count", [5, 256, 257, 600])
@pytest.mark.parametrize("kind", [OnePosition, iter, list, tuple])
def test_no_row_is_lost_to_a_look_ahead(kind: Any, count: int) -> None:
    rows = [{"input": f"text {i}", "output": str(i % 3)} for i in range(count)]
    stream = open_stream(kind(rows))
    stream.task()
    stream.task()
    assert [record.input for record in stream.records()] == [row["input"] for row in rows]


def test_a_second_reading_is_whole_or_refused() -> None:
    rows = [{"input": f"text {i}", "output": str(i % 3)} for i in range(300)]
    for kind in (OnePosition, iter):
        stream = open_stream(kind(rows))
        assert len(list(stream.records())) == 300
        with pytest.raises(DataError, match="can be read once only"):
            next(stream.records())
    stream = open_stream(rows)
    assert len(list(stream.records())) == len(list(stream.records())) == 300


def test_class_numbers_outside_the_names_are_no_label(tmp_path: Path) -> None:
    features = datasets.Features({"input": datasets.Value("string"), "output": datasets.ClassLabel(names=NAMES)})
    data = datasets.Dataset.from_dict({"input": ["a", "b", "c"], "output": [1, 0, -1]}, features=features)
    data.to_parquet(tmp_path / "data.parquet")
    for source in (data, tmp_path / "data.parquet"):
        with pytest.raises(DataError, match="row 2: 'output' is -1, outside the dataset's 2 class names"):
            open_stream(source)
    with pytest.raises(DataError, match="row 2: 'output' is -1"):
        list(open_stream(data.to_iterable_dataset()).records())
    assert len(list(open_stream(data, Columns(output=None)).records())) == 3  # to be answered


@pytest.mark.parametrize("seed", [None, 0])
def test_parquet_shows_the_class_names_in_its_metadata(seed: int | None, tmp_path: Path) -> None:
    features = datasets.Features({"input": datasets.Value("string"), "output": datasets.ClassLabel(names=NAMES)})
    data = datasets.Dataset.from_dict({"input": ["a", "b"], "output": [1, 0]}, features=features)
    data.to_parquet(tmp_path / "data.parquet")
    stream = open_stream(tmp_path / "data.parquet", shuffle_seed=seed)
    assert {record.input: record.output for record in stream.records()} == {"a": "yes", "b": "no"}
    pyarrow.parquet.write_table(pyarrow.table({"input": ["a"], "output": [1]}), tmp_path / "plain.parquet")
    assert [record.output for record in open_stream(tmp_path / "plain.parquet").records()] == ["1"]


@pytest.mark.parametrize("value", [True, numpy.bool_(True), numpy.int64(1), torch.tensor(1), torch.tensor(True)])
def test_scalars_of_any_library_are_labels(value: Any) -> None:
    found = [record.output for record in open_stream([{"input": "a", "output": value}]).records()]
    assert found in (["True"], ["1"])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_column_is_named_beside_all_that_are_there(streaming: bool) -> None:
    data: Any = datasets.Dataset.from_dict({"input": ["a"], "label": ["b"], "image": [None]})
    data = data.to_iterable_dataset() if streaming else data
    with pytest.raises(DataError, match=r"no column 'output'; found \['image', 'input', 'label'\]"):
        open_stream(data).task()


TABLE = {"other": [1, 2], "input": ["a", "b"], "output": ["x", "y"]}


@pytest.mark.parametrize(
    "data",
    [
        pandas.DataFrame(TABLE, index=[9, 4]),
        pyarrow.table(TABLE),
        numpy.asarray([(1, "a", "x"), (2, "b", "y")], dtype=[("other", int), ("input", "U1"), ("output", "U1")]),
        (row for row in pandas.DataFrame(TABLE).to_dict("records")),
    ],
    ids=lambda data: type(data).__name__,
)
def test_tables_are_data(data: Any) -> None:
    assert list(open_stream(data).records()) == [("a", "x"), ("b", "y")]


@pytest.mark.parametrize("kind", [None, "numpy", "torch", "pandas", "arrow", "custom"])
@pytest.mark.parametrize("seed", [None, 0])
def test_a_datasets_format_does_not_matter(kind: str | None, seed: int | None) -> None:
    features = datasets.Features({"input": datasets.Value("string"), "output": datasets.ClassLabel(names=NAMES)})
    data = datasets.Dataset.from_dict({"input": ["a", "b"], "output": [1, 0]}, features=features)
    if kind == "custom":
        data = data.rename_column("input", "text").with_transform(lambda batch: {**batch, "input": batch["text"]})
    else:
        data = data.with_format(kind)
    assert sorted(open_stream(data, shuffle_seed=seed).records()) == [("a", "yes"), ("b", "no")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (pandas.DataFrame({"input": ["a"], "label": ["x"]}), r"no column 'output'; found \['input', 'label'\]"),
        (pandas.DataFrame({"input": ["a", "b"], "output": ["x", None]}), "row 1: 'output' is missing"),
        (pandas.DataFrame({"input": ["a", "b"], "output": [1, None]}), "class number, which is whole"),
        (pandas.DataFrame([["a", "b", "c"]], columns=["input", "output", "input"]), "column 'input': got a DataFrame"),
        ("https://example.com/data.csv", "is an address"),
        ({"input": ["a"], "output": ["x"]}, "Dataset.from_dict"),
        (["a text"], "row 0 is a str; expected a dictionary"),
        ([("a text", "label")], "row 0 is a tuple"),
        ([], "no examples"),
        (b"data.jsonl", "data is a bytes"),
        ([{"input": {"role": "user"}, "output": "x"}], "row 0: 'input' is dict"),
        ([{"input": ["a", "b"], "output": "x"}], "row 0: 'input' is list"),
    ],
    ids=str,
)
def test_what_is_no_data_is_named(data: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_stream(data).task()


def test_folders_and_hub_ids_are_told_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"is a folder; expected a file: name one of \['train.jsonl'\]"):
        open_stream(tmp_path)
    for name in (tmp_path / "none.jsonl", str(tmp_path / "none.csv"), "none.JSONL"):
        with pytest.raises(DataError, match="no file at"):
            open_stream(name)
    asked: list[str] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, **_: asked.append(f"{name} {config}"))
    for name in ("mteb/banking77.v2", "user/reviews.csv", "glue:v1.0", "user/data:part.json"):
        with pytest.raises(DataError):
            open_stream(name)
    assert asked == ["mteb/banking77.v2 None", "user/reviews.csv None", "glue v1.0", "user/data part.json"]


@pytest.mark.parametrize("kind", [list, datasets.Dataset.from_list, "jsonl"])
def test_many_classes_are_told_from_free_text(kind: Any, tmp_path: Path) -> None:
    def stream(labels: int, count: int) -> Any:
        rows = [{"input": f"text {i}", "output": f"label {i * 17 % labels}"} for i in range(count)]
        if kind != "jsonl":
            return open_stream(kind(rows))
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return open_stream(tmp_path / "data.jsonl")

    assert stream(300, 900).task().kind == "classification"  # each thrice, none of them twice in the first 256
    assert stream(300, 300).task().kind == "generation"
    assert stream(1001, 4000).task().kind == "generation"
    with pytest.raises(DataError, match=r"over 1000 different outputs.*the kind is generation.*in-context") as told:
        stream(1001, 4000).task(TaskSpec("classification"))
    assert told.value.options == ("kind generation",)
    assert stream(1001, 4000).task(TaskSpec("classification"), stop=500).kind == "classification"


def test_a_dataset_that_names_its_classes_is_a_classification() -> None:
    names = [f"class {i}" for i in range(300)]
    features = datasets.Features({"input": datasets.Value("string"), "output": datasets.ClassLabel(names=names)})
    data = datasets.Dataset.from_dict({"input": names, "output": list(range(300))}, features=features)
    assert open_stream(data).task().kind == "classification"
    assert open_stream(data.to_iterable_dataset()).task().kind == "classification"


@pytest.mark.parametrize(
    "made",
    [
        lambda: Columns(3),  # type: ignore[arg-type]
        lambda: Columns(None),  # type: ignore[arg-type]
        lambda: Columns("input", 3),  # type: ignore[arg-type]
        lambda: Columns(numbers="size"),  # type: ignore[arg-type]
        lambda: Columns(numbers=(1, 2)),  # type: ignore[arg-type]
        lambda: Columns(quotes="no"),  # type: ignore[arg-type]
    ],
)
def test_columns_check_their_types(made: Any) -> None:
    with pytest.raises(DataError):
        made()


def test_a_row_of_a_table_that_lacks_a_number_is_named() -> None:
    rows = [{"a": 1, "b": 2, "output": "x"}, {"a": 1, "output": "y"}]
    with pytest.raises(DataError, match="row 1 has no column 'b'"):
        open_stream(rows, Columns(numbers=()))


def test_a_target_of_numbers_that_are_written_otherwise_is_no_class(tmp_path: Path) -> None:
    for odd, name in (("1,510.0", "thousands"), ("$12", "currency"), ("n/a", "missing")):
        rows = [{"x": i, "y": str(1.5 * i)} for i in range(40)] + [{"x": 41, "y": odd}]
        with pytest.raises(DataError, match="looks like a column of numbers"):
            open_stream(rows, Columns(output="y", numbers=())).task()
        assert open_stream(rows, Columns(output="y", numbers=())).task(TaskSpec("classification")).columns == ("x",), (
            name
        )
    codes = [{"x": i, "y": f"A{i % 30}"} for i in range(90)]
    assert open_stream(codes, Columns(output="y", numbers=())).task().kind == "classification"
