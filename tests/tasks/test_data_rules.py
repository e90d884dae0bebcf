"""The text of every type of cell, counts of values that are left out, and forms of files."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import lzma
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from command import Done
from pyarrow import parquet

from bench.conformance.task_checks import verdicts
from bench.task import Example, Task, TaskError
from bench.tasks.hub import Hub
from bench.tasks.jsonl import JsonLines
from bench.tasks.records import RecordTask
from bench.tasks.splits import load_split
from bench.tasks.tables import Csv, Parquet
from bench.tasks.values import CellError, KeyOrder, facts_of, is_missing, text_of

NAN = float("nan")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is ", "as it is "),
        (True, "true"),
        (False, "false"),
        (1990, "1990"),
        (1990.0, "1990"),
        (-0.25, "-0.25"),
        (0.1, "0.1"),
        (1e-5, "0.00001"),
        (123456789012.0, "123456789012"),
        (1e22, "1e+22"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1E+3"), "1000"),
        (datetime.date(2024, 1, 31), "2024-01-31"),
        (datetime.datetime(2024, 1, 31, 8, 30, tzinfo=datetime.UTC), "2024-01-31T08:30:00+00:00"),
        (datetime.time(8, 30), "08:30:00"),
        (datetime.timedelta(days=1, seconds=5), "1 day, 0:00:05"),
        (["a", 2, None, 3.0], "a, 2, 3"),
        ({"city": "Rome"}, "city : Rome"),
        ({"city": "Rome", "born": None, "pets": ["cat", "dog"]}, "city : Rome | pets : cat, dog"),
        ({"home": {"city": "Rome", "flat": 3}}, "home : city : Rome | home : flat : 3"),
        ([["Ann", "home", "Rome"], ["Ann", "born", 1990]], "Ann : home : Rome | Ann : born : 1990"),
        ([{"subject": "Ann", "property": "home", "object": "Rome"}], "Ann : home : Rome"),
        ({"subject": ["A", "B"], "property": ["in", "of"], "object": ["C", "D"]}, "A : in : C | B : of : D"),
        ([["Ann", "likes", ["tea", "figs"]]], "Ann : likes : tea, figs"),
        ({"teams": [{"name": "A", "wins": 3}, {"name": "B", "wins": 4}]}, "teams : A : 3 | teams : B : 4"),
    ],
)  # fmt: skip
def test_each_type_has_one_text(value: Any, text: str) -> None:
    order = KeyOrder(("subject", "property", "object", "city"))
    assert not is_missing(value)
    assert text_of(value, order) == text


@pytest.mark.parametrize(
    "value", [None, NAN, Decimal("nan"), "", " \n", [], {}, [None, ""], {"a": None, "b": [NAN]}, [[], [""]]]
)
def test_what_is_missing(value: Any) -> None:
    assert is_missing(value)


def test_what_has_no_text_is_refused() -> None:
    for value in (b"bytes", object(), [b"bytes"], {"a": {"b": b"bytes"}}):
        with pytest.raises(CellError, match="which has no text"):
            text_of(value)


def test_facts_with_a_missing_part_are_left_out_and_counted() -> None:
    assert facts_of([["Ann", "home", None], ["Ann", "born", "1990"]]) == ((("Ann", "born", "1990"),), 1)
    assert facts_of({"name": "Ann", "home": NAN, "pets": []}) == ((("name", "Ann"),), 2)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def jsonl(folder: Path, *rows: dict[str, Any], **settings: Any) -> JsonLines:
    write_lines(folder / "train.jsonl", list(rows))
    return JsonLines(JsonLines.Config(path=str(folder), **settings))


def test_the_order_of_keys_is_stated_and_not_that_of_the_file(tmp_path: Path) -> None:
    first = {"name": "Ann", "home": "Rome"}
    task = jsonl(
        tmp_path, *({"source": source, "references": "x"} for source in (first, {"home": "Oslo", "name": "B"}))
    )
    write_lines(tmp_path / "dev.jsonl", [{"source": {"home": "Lima", "name": "C"}, "references": "x"}])
    assert [example.source for example in task.load("train")] == ["name : Ann | home : Rome", "name : B | home : Oslo"]
    assert task.load("dev")[0].source == "name : C | home : Lima", "as in the training split"
    stated = JsonLines(JsonLines.Config(path=str(tmp_path), keys=("home",)))
    assert stated.load("dev")[0].source == "home : Lima | name : C"
    sorted_keys = jsonl(
        tmp_path, {"source": [{"object": "Rome", "property": "home", "subject": "Ann"}], "references": "x"}
    )
    assert sorted_keys.load("train")[0].facts == (("Ann", "home", "Rome"),)


def test_empty_references_and_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    task = jsonl(
        tmp_path,
        {"source": "a", "references": ["A.", None, ""]},
        {"source": "b", "references": None},
        {"source": "c", "references": []},
        {"source": None, "references": "x"},
        {"source": NAN, "references": "x"},
        {"source": True, "references": 3.0},
    )
    assert task.load("train") == [Example("train-1", (), "a", ("A.",)), Example("train-6", (), "true", ("3",))]
    expected = {"empty references": 4, "rows without a reference": 2, "rows without a source": 2}
    assert task.skipped("train") == expected
    assert task.load("train")
    assert task.skipped("train") == expected, "of the last call alone"


def test_empty_cells_leave_no_hole_in_a_template(tmp_path: Path) -> None:
    rows = "name,home,born,text\nAnn,Rome,1990,x\nBob,,1991,y\nCid,,,z\n,,,w\n"
    (tmp_path / "train.csv").write_text(rows)
    template = "name : {name} | home : {home} | born : {born}"
    task = Csv(Csv.Config(path=str(tmp_path), source=template, references="text"))
    examples = task.load("train")
    assert [example.source for example in examples] == [
        "name : Ann | home : Rome | born : 1990",
        "name : Bob | born : 1991",
        "name : Cid",
    ]
    assert examples[1].facts == (("name", "Bob"), ("born", "1991"))
    assert task.skipped("train") == {"facts without a value": 6, "rows without a source": 1}
    prose = Csv(Csv.Config(path=str(tmp_path), source="{name} of {home}, {{x}}", references="text"))
    assert [example.source for example in prose.load("train")][:2] == ["Ann of Rome, {x}", "Bob of , {x}"]


CHAT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann."}]


@pytest.mark.parametrize(
    "value",
    [
        CHAT,
        [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Ann."}],
        {"role": ["user", "assistant"], "content": ["Who?", "Ann."]},
        {"id": 3, "turns": CHAT},
        json.dumps(CHAT),
        str(CHAT),
    ],
)
@pytest.mark.parametrize(
    "settings", [{"source": "messages"}, {"source": "Chat: {messages}"}, {"references": "messages"}]
)
def test_a_conversation_is_refused_with_what_is_right(value: Any, settings: dict[str, str], tmp_path: Path) -> None:
    task = jsonl(tmp_path, {"source": "a", "references": "b", "messages": value}, **settings)
    if "references" in settings and isinstance(value, dict):
        message = "line 1: 'messages' "
    else:
        message = (
            r"line 1: 'messages' is a conversation \(.*make two columns of it, one with what is asked, for 'source'"
        )
    with pytest.raises(TaskError, match=message):
        task.load("train")


def test_facts_that_speak_of_roles_are_no_conversation(tmp_path: Path) -> None:
    source = [{"role": "captain", "content": "Ann"}, {"role": "cook", "content": "Bob"}]
    assert (
        jsonl(tmp_path, {"source": source, "references": "x"}).load("train")[0].source == "captain : Ann | cook : Bob"
    )


ROWS = [
    {
        "address": {"city": "Rome", "zip": None},
        "tags": ["a", "b"],
        "born": datetime.date(1990, 5, 1),
        "height": 1.1,
        "alive": True,
        "income": Decimal("10.50"),
        "age": 33.0,
        "text": "Ann.",
    },
    {"address": None, "tags": [], "born": None, "height": NAN, "alive": None, "income": None, "age": 40.0, "text": ""},
    {
        "address": None,
        "tags": None,
        "born": None,
        "height": None,
        "alive": None,
        "income": None,
        "age": 41.0,
        "text": "C",
    },
]
SCHEMA = pa.schema(
    {
        "address": pa.struct({"city": pa.string(), "zip": pa.string()}),
        "tags": pa.list_(pa.string()),
        "born": pa.date32(),
        "height": pa.float32(),
        "alive": pa.bool_(),
        "income": pa.decimal128(8, 2),
        "age": pa.float64(),
        "text": pa.string(),
    }
)
SOURCE = " | ".join(f"{name} : {{{name}}}" for name in SCHEMA.names if name != "text")


def hub(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Task:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    return Hub(Hub.Config(path=str(folder / "data"), **settings))


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_typed_tables_read_by_the_same_rules(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    parquet.write_table(pa.Table.from_pylist(ROWS, SCHEMA), tmp_path / "data" / "train.parquet")
    settings: dict[str, Any] = {"source": SOURCE, "references": "text"}
    task: Task = Parquet(Parquet.Config(path=str(tmp_path / "data"), **settings))
    if kind == "hub":
        task = hub(tmp_path, monkeypatch, **settings)
    first, second = task.load("train")
    assert first.source == (
        "address : city : Rome | tags : a, b | born : 1990-05-01 | height : 1.1 | alive : true | income : 10.50"
        " | age : 33"
    )
    assert second.source == "age : 41"
    assert task.skipped("train")["rows without a reference"] == 1
    with pytest.raises(TaskError, match=r"no column 'name'; the columns are address, tags, born"):
        type(task)(type(task).Config(path=str(tmp_path / "data"), source="name", references="text")).load("train")


def test_classes_of_a_hub_data_set_read_as_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train.parquet")
    task = hub(tmp_path, monkeypatch, source="text", references="label")
    assert [example.references for example in task.load("train")] == [("good",), ("bad",)]
    assert task.skipped("train") == {"empty references": 1, "rows without a reference": 1}
    choices = {"labels": ["poor", "fine"], "reference": "place"}
    placed = hub(tmp_path, monkeypatch, source="text", references="label", choices=choices)
    assert [example.references for example in load_split(placed, "train")] == [("fine",), ("poor",)]
    assert placed.skipped("train") == task.skipped("train")


def zstandard(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(content)
    return bytes(packed.getvalue())


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard,
}


@pytest.mark.parametrize("ending", PACKERS)
def test_packed_files_are_read_and_damaged_ones_named(ending: str, tmp_path: Path) -> None:
    content = b"source,references\n" + b"".join(b"a%d,b%d\n" % (n, n) for n in range(300))
    path = tmp_path / f"train.csv{ending}"
    path.write_bytes(PACKERS[ending](content))
    task = Csv(Csv.Config(path=str(tmp_path)))
    assert len(task.load("train")) == 300
    assert task.data_sha256() is not None
    path.write_bytes(PACKERS[ending](content)[:-30])
    with pytest.raises(TaskError, match=rf"train.csv{ending}: cannot be read"):
        task.load("train")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.json", '[\n {"source": "a", "references": "x"},\n {"source": "b", "references": ["y"]}\n]\n'),
        ("train.jsonl", '\ufeff{"source": "a", "references": "x"}\n{"source": "b", "references": ["y"]}\n'),
        ("train.csv", "source;references\na;x\nb;y\n"),
        ("train.csv", "\ufeffsource\treferences\r\na\tx\r\nb\ty\r\n"),
        ("train.tsv", "source\treferences\na\tx\nb\ty\n"),
        ("train.csv", "sep=;\nsource;references\na;x\nb;y\n"),
        ("train.csv", "source|references\na|x\nb|y\n"),
        ("train.csv", 'source, references\na,x\n"b","y"\n'),
    ],
)
def test_arrays_and_other_delimiters_are_read(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    kind: type[RecordTask] = JsonLines if ".json" in name else Csv
    found = kind(kind.Config(path=str(tmp_path))).load("train")
    assert [(example.source, example.references) for example in found] == [("a", ("x",)), ("b", ("y",))]


def test_a_cell_as_long_as_a_book_is_read(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"source,references\n{'a' * 1_000_000},x\n")
    assert len(Csv(Csv.Config(path=str(tmp_path))).load("train")[0].source) == 1_000_000


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        (
            "train.csv",
            b"source#references\na#b\n",
            {},
            r"line 1: no column 'source'; the columns are source#references, read as separated by commas \(task.delim",
        ),
        (
            "train.csv",
            b"source;references\na;b\n",
            {"delimiter": ","},
            "no column 'source'; the columns are source;references",
        ),
        (
            "train.csv",
            b"source\treferences\na\tb\tc\n",
            {},
            "line 2: 3 fields, the header has 2, read as separated by tabs; a cell that holds the separator stands in",
        ),
        ("train.csv", b'{"source": "a", "references": "b"}\n', {}, "It looks like JSON: read it with the task jsonl"),
        ("train.csv", b"PAR1", {}, "is Parquet; read it with the task parquet"),
        ("train.csv", b"PK\x03\x04", {}, "is a zip archive, as Excel's workbooks are"),
        ("train.csv", "source,references\n".encode("utf-16"), {}, "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8"),
        (
            "train.csv",
            b"source,references\ncaf\xe9,x\n",
            {},
            "line 2: not UTF-8: byte 0xe9 .*iconv -f WINDOWS-1252 -t UTF",
        ),
        ("train.jsonl", b"version https://git-lfs.github.com/spec/v1\n", {}, "is a Git LFS pointer"),
        (
            "train.jsonl",
            b"source,references\na,b\n",
            {},
            "line 1: not valid JSON: .* It looks like a table: read it with",
        ),
        (
            "train.jsonl",
            b'{\n "rows": [{"source": "a"}]\n}\n',
            {},
            r"line 1: not valid JSON: .* The file is one object \(rows\); save the array within it",
        ),
    ],
)
def test_the_error_names_delimiter_or_format(
    name: str, content: bytes, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    kind: type[RecordTask] = JsonLines if ".json" in name else Csv
    with pytest.raises(TaskError, match=rf"{name}: .*{message}"):
        kind(kind.Config(path=str(tmp_path), **settings)).load("train")


def test_an_unknown_delimiter_is_refused() -> None:
    assert Csv.Config(path=".", delimiter="tab").delimiter == "\t"
    with pytest.raises(ValueError, match="a delimiter is one character"):
        Csv.Config(path=".", delimiter=";;")


def test_tasks_tells_what_was_left_out_and_what_splits_share(tuneoff: Callable[..., Done], tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", [{"source": "a", "references": "x"}, {"source": "b", "references": None}])
    for split in ("dev", "test"):
        write_lines(tmp_path / f"{split}.jsonl", [{"source": f"c{n}", "references": "x"} for n in range(3)])
    done = tuneoff("tasks", "jsonl", "--set", f"path={tmp_path}")
    printed = " ".join(done.stdout.split())  # however wide the terminal is
    assert "left out of train: 1 empty references, 1 rows without a reference" in printed
    assert "warning: 3 test sources are in the dev data too: settings were chosen on what is scored" in printed


@pytest.mark.parametrize("cell", ["['a', 'b']", "{'city': 'Rome'}", "nan", "None"])
def test_check_task_finds_what_python_wrote_into_a_file(cell: str, tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.csv").write_text(f'name,tags,text\nAnn,"{cell}",x\nBob,"[{{]",y\n')
    task = Csv(Csv.Config(path=str(tmp_path), source="{name} | {tags}", references="text"))
    (reason,) = [verdict.reason for verdict in verdicts(task) if verdict.check == "sources are worded"]
    assert reason.startswith(f"train: example 'train-1': the source says {cell!r}, a value as Python writes it")
