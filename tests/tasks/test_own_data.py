"""A user's own files and data sets become tasks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench.config.resolver import RegistryResolver
from bench.plugins.registry import load_task, make_task, resolve
from bench.schema.validation import ConfigError
from bench.task import Example, Task, TaskError
from bench.tasks.hub import Hub
from bench.tasks.jsonl import JsonLines
from bench.tasks.records import share_of, template_columns
from bench.tasks.splits import load_splits, oddities
from bench.tasks.tables import Csv, Parquet


def task(settings: dict[str, Any]) -> Task:
    """A task from its part of a sweep, as the driver makes it."""
    return make_task(RegistryResolver().task(settings["name"], {k: v for k, v in settings.items() if k != "name"}))


def people(count: int = 60) -> list[dict[str, str]]:
    return [
        {"name": f"Ann {n}", "home": ("Rome", "Oslo")[n % 2], "text": f"Ann {n} lives in {('Rome', 'Oslo')[n % 2]}."}
        for n in range(count)
    ]


def test_a_csv_with_three_columns_becomes_a_task_with_four_lines_of_yaml(tmp_path: Path) -> None:
    pd.DataFrame(people()).to_csv(tmp_path / "people.csv", index=False)
    page = (Path(__file__).parents[2] / "docs" / "use" / "tasks.md").read_text(encoding="utf-8")
    shown = page.split("## Your own data")[1].split("```yaml\n")[1].split("```")[0]
    settings = yaml.safe_load(shown)["task"]
    assert len(settings) == 4
    settings["path"] = str(tmp_path / settings["path"])
    splits = load_splits(task(settings))
    assert sum(map(len, splits.values())) == 60
    assert all(len(examples) >= 2 for examples in splits.values())
    found = {example.source: example for examples in splits.values() for example in examples}
    assert found["name : Ann 3 | home : Oslo"].references == ("Ann 3 lives in Oslo.",)
    assert found["name : Ann 3 | home : Oslo"].facts == (("name", "Ann 3"), ("home", "Oslo"))
    assert not any(oddities(splits).values())


def test_rows_with_the_same_source_are_one_example_with_all_references(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.csv").write_text("source,references,kind\na,A one.,x\nb,B.,y\na,A two.,x\n")
    examples = Csv(Csv.Config(path=str(tmp_path), tags="kind")).load("dev")
    assert examples == [
        Example("dev-1", (), "a", ("A one.", "A two."), ("x",)),
        Example("dev-2", (), "b", ("B.",), ("y",)),
    ]


RECORDS: list[dict[str, Any]] = [
    {"key": "k1", "data": [["Ann", "home", "Rome"], ["Ann", "born", "1990"]], "one": "x", "more": ["y", "z"]},
    {"key": "k2", "data": [["Bob", "home", "Oslo"]], "one": "u", "more": ["v"]},
]
EXPECTED = [
    Example(
        "k1",
        (("Ann", "home", "Rome"), ("Ann", "born", "1990")),
        "Ann : home : Rome | Ann : born : 1990",
        ("x", "y", "z"),
        ("x",),
    ),
    Example("k2", (("Bob", "home", "Oslo"),), "Bob : home : Oslo", ("u", "v"), ("u",)),
]
MAPPING: dict[str, Any] = {"source": "data", "references": ["one", "more"], "id": "key", "tags": "one"}


def test_triples_lists_of_references_ids_and_tags_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    pd.DataFrame(RECORDS).to_parquet(tmp_path / "train.parquet")
    assert JsonLines(JsonLines.Config(path=str(tmp_path), **MAPPING)).load("train") == EXPECTED
    assert Parquet(Parquet.Config(path=str(tmp_path), **MAPPING)).load("train") == EXPECTED


def test_records_and_lists_of_objects_are_facts(tmp_path: Path) -> None:
    rows = [
        {"source": {"name": "Ann", "home": "Rome", "born": None}, "references": "Ann."},
        {"source": [{"subject": "Bob", "property": "home", "object": "Oslo"}], "references": "Bob."},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = JsonLines(JsonLines.Config(path=str(tmp_path))).load("train")
    assert first.source == "name : Ann | home : Rome"
    assert second.facts == (("Bob", "home", "Oslo"),)


def test_a_data_set_of_the_hubs_form_loads_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "summaries"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"document": f"{split} document {n}", "summary": f"{split} {n}"} for n in range(5)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"name": "hub", "path": str(folder), "source": "document", "references": "summary"}
    splits = load_splits(task(settings))
    assert {split: len(examples) for split, examples in splits.items()} == {"train": 5, "dev": 5, "test": 5}
    assert splits["dev"][0].source.startswith("validation document")
    instructed = task({**settings, "source": "Sum up: {document}", "train": "train[:40%]"})
    assert [example.source for example in instructed.load("train")] == [
        "Sum up: train document 0",
        "Sum up: train document 1",
    ]
    before = instructed.data_sha256()
    (folder / "test.jsonl").write_text("{}\n")
    assert instructed.data_sha256() != before
    with pytest.raises(TaskError, match=r"summaries: heldout: cannot be loaded: Unknown split"):
        task({**settings, "test": "heldout"}).load("test")


def test_a_name_on_the_hub_is_a_commit_or_can_be_looked_up(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"revision: missing for 'EdinburghNLP/xsum'.* give the commit"):
        task({"name": "hub", "path": "EdinburghNLP/xsum", "source": "document", "references": "summary"})
    with pytest.raises(ConfigError, match="revision: 'abc' has no effect with the folder"):
        task({"name": "hub", "path": str(tmp_path), "revision": "abc"})
    named = {"name": "hub", "path": "EdinburghNLP/xsum", "source": "document", "references": "summary"}
    first, second = (task({**named, "revision": revision * 40}) for revision in ("a", "b"))
    assert first.data_sha256() != second.data_sha256()
    with pytest.raises(TaskError, match="EdinburghNLP/xsum: train: cannot be loaded"):
        first.load("train")


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (
            "source,references\na,\n",
            {},
            "no examples; left out: 1 empty references, 1 rows without a reference",
        ),
        ("source,references\n ,x\n", {}, "no examples; left out: 1 rows without a source"),
        ("source,refs\na,x\n", {}, "line 1: no column 'references'; the columns are source, refs"),
        ("a,b\n1,x\n", {"source": "{a} {c}", "references": "b"}, "line 1: no column 'c'; the columns are a, b"),
        ("source,references\na,x,y\n", {}, "line 2: 3 fields, the header has 2"),
        ("source,references\n", {}, "no examples"),
        ("source,references\na,caf\xe9\n", {}, "line 2: not UTF-8: byte 0xe9"),
    ],
)
def test_malformed_tables_are_named(content: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(TaskError, match=rf"train.csv: {message}"):
        Csv(Csv.Config(path=str(tmp_path), **settings)).load("train")


def test_other_malformed_input_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 this is none")
    with pytest.raises(TaskError, match=r"train.parquet: cannot be read as Parquet"):
        Parquet(Parquet.Config(path=str(tmp_path))).load("train")
    (tmp_path / "train.jsonl").write_text('{"source": "a", "reference": "x"}\n')
    with pytest.raises(TaskError, match=r"train.jsonl: line 1: no column 'references'; the columns are source, refere"):
        JsonLines(JsonLines.Config(path=str(tmp_path))).load("train")
    with pytest.raises(TaskError, match=r"the dev split is not there: no file '.*dev.jsonl'"):
        JsonLines(JsonLines.Config(path=str(tmp_path))).load("dev")
    (tmp_path / "one.csv").write_text("source,references\na,x\n")
    (empty,) = {"train", "dev", "test"} - {share_of("a")} - {"train"} if share_of("a") != "train" else ("dev",)
    with pytest.raises(TaskError, match=r"one.csv: no examples, whose .* split is one source in ten"):
        Csv(Csv.Config(path=str(tmp_path / "one.csv"))).load(empty)


@pytest.mark.parametrize("template", ["{a", "{}", "{a.b}", "{a[0]}", "{a!r}", "{a:>9}"])
def test_a_template_is_checked_before_anything_starts(template: str) -> None:
    with pytest.raises(ConfigError, match="source: not a template"):
        RegistryResolver().task("csv", {"path": ".", "source": template})


def test_a_template_has_one_place_and_no_columns(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"template has the place \{source\} once"):
        RegistryResolver().task("csv", {"path": ".", "template": "{source}\n{source}"})
    frame = pd.DataFrame({"question": ["Who?"], "context": ["Ann came."], "answer": ["Ann"]})
    frame.to_csv(tmp_path / "train.csv", index=False)
    frame.to_parquet(tmp_path / "train.parquet")
    columns = {"path": str(tmp_path), "source": "question", "references": "answer"}
    message = (
        r"row 1|line 2): task.template: \{context\} would stay .*; columns are filled in by task.source, e.g. '\{con"
    )
    for kind in (Csv, Parquet):
        with pytest.raises(TaskError, match=f"({message}"):
            kind(kind.Config(**columns, template="{context}\n{source}")).load("train")
        kept = kind(kind.Config(**columns, template='{bos}Answer as {"who": name}: {source}')).load("train")
        assert [example.references for example in kept] == [("Ann",)]
    frame.rename(columns={"question": "source"}).to_csv(tmp_path / "train.csv", index=False)
    assert Csv(Csv.Config(path=str(tmp_path), references="answer")).load("train")


@given(st.lists(st.text(min_size=1, max_size=6), min_size=300, max_size=300, unique=True))
def test_an_undivided_file_is_shared_out_by_its_sources(sources: list[str]) -> None:
    counts = Counter(share_of(source) for source in sources)
    assert counts["train"] > 200
    assert share_of(sources[0]) == share_of(str(sources[0]))


names = st.text(st.characters(whitelist_categories=("Ll",)), min_size=1, max_size=4)


@given(
    st.lists(names, min_size=1, max_size=4, unique=True), st.lists(st.text("{} ab", max_size=5), min_size=5, max_size=5)
)
def test_templates_name_their_columns(columns: list[str], between: list[str]) -> None:
    texts = [text.replace("{", "{{").replace("}", "}}") for text in between]
    template = texts[-1] + "".join(f"{{{column}}}{text}" for column, text in zip(columns, texts, strict=False))
    assert template_columns(template) == columns
    filled = template.format_map({column: column.upper() for column in columns})
    assert filled == between[-1] + "".join(
        column.upper() + text for column, text in zip(columns, between, strict=False)
    )


def test_every_task_of_the_table_can_be_loaded() -> None:
    for name in ("csv", "parquet", "hub", "jsonl", "e2e", "webnlg", "dart", "facts"):
        task_class = load_task(resolve("task", name))
        assert (task_class.__doc__ or "").strip()
    assert Hub.licence
