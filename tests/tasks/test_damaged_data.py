"""Loading a damaged data file gives complete examples, or one error that names the file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.task import SPLITS, Task, TaskError
from bench.tasks.dart import Dart
from bench.tasks.e2e import E2E
from bench.tasks.jsonl import JsonLines
from bench.tasks.rows import read_csv, read_json_lines
from bench.tasks.tables import Csv, Parquet, read_parquet
from bench.tasks.webnlg import WebNLG

ROWS = [{"source": f"name : A{n}", "references": f"A{n} is here."} for n in range(3)]
XML = "".join(
    f'<entry category="City" eid="Id{n}"><mtriple>A{n} | is in | B</mtriple>'
    f'<lex comment="good">A{n} is in B.</lex></entry>\n'
    for n in range(3)
)
TRIPLES = [["A_B", "isIn", "C"]]
LEX = [{"text": "A B is in C.", "comment": "good"}]
CHALLENGE = [
    {
        str(n): {
            "category": "City",
            "modifiedtripleset": [{"subject": f"A{n}", "property": "isIn", "object": "C"}],
            "lexicalisations": [{"lex": "A is in C.", "comment": "good"}],
        }
    }
    for n in range(3)
]
DART = [{"tripleset": TRIPLES, "annotations": [{"source": "x", "text": f"A{n} is in C."}]} for n in range(3)]


def table(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def archive(xml: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        entry = tarfile.TarInfo("webnlg/test/testdata_with_lex.xml")
        entry.size = len(xml)
        tar.addfile(entry, io.BytesIO(xml.encode()))
    return content.getvalue()


def parquet(rows: list[dict[str, str]]) -> bytes:
    content = io.BytesIO()
    pd.DataFrame(rows).to_parquet(content)
    return content.getvalue()


def e2e(folder: Path) -> Task:
    return E2E(E2E.Config(path=str(folder), check_counts=False))


def e2e_paper(folder: Path) -> Task:
    return E2E(E2E.Config(path=str(folder), check_counts=False, form="paper"))


def webnlg(folder: Path) -> Task:
    return WebNLG(WebNLG.Config(path=str(folder), check_counts=False))


def dart(folder: Path) -> Task:
    return Dart(Dart.Config(path=str(folder), check_counts=False))


FORMATS: dict[str, tuple[str, Callable[[Path], Task], bytes]] = {
    "e2e csv": ("testset_w_refs.csv", e2e, table([{"mr": f"name[A{n}], area[B]", "ref": "x"} for n in range(3)])),
    "e2e paper": ("src1_test.txt", e2e_paper, b"name : A | area : B||Text .\nname : C||More .\n"),
    "e2e gzip": ("src1_test.txt.gz", e2e_paper, gzip.compress(b"name : A | area : B||Text .\n" * 3)),
    "webnlg lines": (
        "webnlg17_test.jsonl",
        webnlg,
        json_lines([{"id": f"i{n}", "category": "City", "triples": TRIPLES, "lex": LEX} for n in range(3)]),
    ),
    "webnlg json": ("test.json", webnlg, json.dumps({"entries": CHALLENGE}, indent=1).encode()),
    "webnlg archive": ("webnlg_challenge_2017_xml.tar.gz", webnlg, archive(f"<benchmark>{XML}</benchmark>")),
    "dart json": ("dart-v1.1.1-full-test.json", dart, json.dumps(DART, indent=1).encode()),
    "dart xml": ("dart-v1.1.1-full-test.xml", dart, f"<benchmark>{XML}</benchmark>".encode()),
    "csv": ("test.csv", lambda folder: Csv(Csv.Config(path=str(folder))), table(ROWS)),
    "jsonl": ("test.jsonl", lambda folder: JsonLines(JsonLines.Config(path=str(folder))), json_lines(ROWS)),
    "parquet": ("test.parquet", lambda folder: Parquet(Parquet.Config(path=str(folder))), parquet(ROWS)),
}


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_whole_or_is_one_error(
    form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name, make, whole = FORMATS[form]
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 30)))
    inserted = data.draw(
        st.one_of(st.just(b""), st.binary(max_size=8), st.sampled_from([b'""', b"[]", b"7", b"null", b"{"]))
    )
    cut = data.draw(st.booleans())
    folder = tmp_path_factory.mktemp("damaged")
    (folder / name).write_bytes(whole[:start] + inserted + (b"" if cut else whole[end:]))
    try:
        examples = make(folder).load("test")
    except TaskError as error:
        assert name in str(error)
    else:
        assert examples
        for example in examples:
            assert example.source.strip()
            assert example.references
            assert all(text.strip() for text in example.references)
            json.dumps(example.source, ensure_ascii=False).encode()


@pytest.mark.parametrize("form", FORMATS)
def test_an_undamaged_file_is_read(form: str, tmp_path: Path) -> None:
    name, make, whole = FORMATS[form]
    (tmp_path / name).write_bytes(whole)
    assert make(tmp_path).load("test")
    assert set(make(tmp_path).checksums(["test"])) == {name}


def test_files_of_one_name_have_a_checksum_each(tmp_path: Path) -> None:
    files = {split: f"{folder}/0000.csv" for split, folder in (("train", "train"), ("dev", "validation"))}
    for number, name in enumerate([*files.values(), "test.csv"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(table(ROWS) + b"\n" * number)
    task = Csv(Csv.Config(path=str(tmp_path), **files))
    assert set(task.checksums(["train", "dev", "test"])) == {"train/0000.csv", "validation/0000.csv", "test.csv"}
    of_splits = [task.checksums([split]) for split in SPLITS]
    assert len({sha256 for found in of_splits for sha256 in found.values()}) == 3
    assert [list(found) for found in of_splits] == [["train/0000.csv"], ["validation/0000.csv"], ["test.csv"]]


cells = st.text(st.characters(blacklist_characters="\x00", blacklist_categories=("Cs",)), max_size=12)


@given(rows=st.lists(st.tuples(cells, cells), max_size=6))
def test_csv_reads_back_what_was_written(rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("csv") / "some.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("a", "b"), *rows])
    examples = list(read_csv(str(path), ("a", "b")))
    assert [(row["a"], row["b"]) for _, row in examples] == rows
    assert [number for number, _ in examples] == sorted({number for number, _ in examples})


json_objects = st.dictionaries(
    st.text(max_size=3), st.one_of(st.integers(), cells, st.none(), st.lists(cells)), max_size=3
)


@given(rows=st.lists(json_objects, max_size=5))
def test_json_lines_read_back_what_was_written(
    rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "some.jsonl"
    path.write_bytes(json_lines(rows))
    assert list(read_json_lines(str(path))) == list(enumerate(rows, start=1))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 100_000, "line 1: JSON that cannot be read"),
        ('{"a": ' + "9" * 5000 + "}", "line 1: JSON that cannot be read: Exceeds the limit"),
        ('{"a": "\\ud800"}', r"line 1: half of a surrogate pair, which is no character: '\\ud800'"),
        ('{"a": 1, "a": 2}', "line 1: the key 'a' occurs twice in an object"),
        (
            '{"source": {"food": "x", "food": "y"}, "references": "t"}',
            "line 1: the key 'food' occurs twice in an object",
        ),
        ('{"a": "t"}\n{"a": [[{"b": 1, "b": 2}]]}', "line 2: the key 'b' occurs twice in an object"),
        ('[{"a": "t"},\n{"a": 1, "a": 2}]', "line 2: the key 'a' occurs twice in an object"),
        ('{"a": 1}{"a": 2}', "line 1: not valid JSON: Extra data at column 9; one object stands on a line"),
        ('[{"a": 1}]\n[{"a": 2}]', r"line 2: nothing may follow the array, got '\[\{\"a\": 2\}\]\\n'"),
        ('[{"a": 1}', "line 2: expected ',' or ']', got the end of the file"),
        ("[]x", r"line 1: nothing may follow the array, got 'x\\n'"),
        ("<html>", "line 1: not valid JSON: Expecting value at column 1$"),
        ("a,b", "line 1: not valid JSON: Expecting value at column 1. It looks like a table"),
    ],
)
def test_json_that_is_not_whole_or_not_to_be_held(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(TaskError, match=f"some.jsonl: {message}"):
        list(read_json_lines(str(path)))


def test_a_table_that_is_empty_or_has_a_column_twice_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "some.csv"
    path.write_text("a,b,a\n1,2,3\n")
    with pytest.raises(TaskError, match=r"some.csv: line 1: two columns are called 'a'"):
        list(read_csv(str(path), ()))
    path.write_text("\n")
    with pytest.raises(TaskError, match=r"some.csv: is empty; its first line names the columns a, b$"):
        list(read_csv(str(path), ("a", "b")))


def test_parquet_that_python_cannot_hold_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    twice = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], ["a", "a"])
    for made, message in (
        (twice, "some.parquet: two columns are called 'a'"),
        (pa.table({"a": pa.array([10**18], pa.timestamp("us"))}), "some.parquet: cannot be read as Parquet: .*range"),
    ):
        pq.write_table(made, path)
        with pytest.raises(TaskError, match=message):
            list(read_parquet(str(path), ["a"]))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_source_of_a_hundred_thousand_characters_is_read_and_cut_later(form: str, tmp_path: Path) -> None:
    from bench.conformance.tiny_models import WordTokenizer
    from bench.models.architecture import DecoderOnly
    from bench.models.tokens import Tokenization

    name, make, _ = FORMATS[form]
    write: dict[str, Callable[[Any], bytes]] = {"csv": table, "jsonl": json_lines, "parquet": parquet}
    (tmp_path / name).write_bytes(write[form]([{"source": "a " * 50_000, "references": "x"}]))
    task = make(tmp_path)
    (example,) = task.load("test")
    assert len(example.source) == 100_000
    tokens = Tokenization(WordTokenizer(), task.config, DecoderOnly())
    assert len(tokens.source(example)) < task.config.max_source_tokens + 10
    assert tokens.truncated_sources == 1
