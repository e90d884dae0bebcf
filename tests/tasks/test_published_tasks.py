"""The published benchmarks: counts, linearisations, every form of file, malformed files."""

from __future__ import annotations

import gzip
import http.server
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.schema.trial import TaskSpec
from bench.task import Example, Split, TaskError, linearise
from bench.tasks.benchmark import PublishedFile, PublishedTask
from bench.tasks.benchmark_xml import read_entries
from bench.tasks.dart import Dart
from bench.tasks.e2e import E2E, slots
from bench.tasks.rows import local_copy, read_json_array
from bench.tasks.splits import oddities
from bench.tasks.webnlg import WebNLG
from bench.tasks.wording import entity_words, relation_words

SPLITS: tuple[Split, ...] = ("train", "dev", "test")


def counts(task: PublishedTask, splits: tuple[Split, ...] = SPLITS) -> dict[str, tuple[int, int]]:
    """Sources and references of each split."""
    found = {split: task.load(split) for split in splits}
    return {split: (len(some), sum(len(example.references) for example in some)) for split, some in found.items()}


@pytest.mark.parametrize("form", ["raw", "paper"])
def test_e2e_counts(form: str, shared_data: Path) -> None:
    task = E2E(E2E.Config(path=str(shared_data / "e2e"), form=form))
    assert counts(task) == {"train": (4862, 42061), "dev": (547, 4672), "test": (630, 4693)}


def test_e2e_sources_of_both_forms(shared_data: Path) -> None:
    raw, paper = (
        E2E(E2E.Config(path=str(shared_data / "e2e"), form=form)).load("test")[0] for form in ("raw", "paper")
    )
    assert raw.source == "name : Blue Spice | eatType : coffee shop | area : city centre"
    assert paper.source == "name : Blue Spice | Type : coffee shop | area : city centre"
    assert raw.facts == (("name", "Blue Spice"), ("eatType", "coffee shop"), ("area", "city centre"))
    assert raw.references[1] == "Blue Spice is a coffee shop in city centre."
    assert paper.references[1] == "Blue Spice is a coffee shop in city centre ."


def test_the_papers_linearisation_of_raw_e2e_is_the_papers_source(shared_data: Path) -> None:
    folder = str(shared_data / "e2e")
    for split in SPLITS:
        raw = E2E(E2E.Config(path=folder, linearisation="hu")).load(split)
        paper = E2E(E2E.Config(path=folder, form="paper")).load(split)
        assert [example.source for example in raw] == [example.source for example in paper]


def test_e2e_cleaned_trains_on_dev_where_train_is_missing(shared_data: Path) -> None:
    folder = str(shared_data / "e2e_cleaned")
    task = E2E(E2E.Config(path=folder, form="cleaned"))
    assert counts(task, ("dev", "test")) == {"dev": (1484, 4299), "test": (1847, 4693)}
    with pytest.raises(
        TaskError, match=r"the train split is not there: no file train-fixed.no-ol.csv.*train_split: dev"
    ):
        task.load("train")
    stand_in = E2E(E2E.Config(path=folder, form="cleaned", train_split="dev"))
    train, dev = stand_in.load("train"), stand_in.load("dev")
    assert len(train) + len(dev) == 1484
    assert len(dev) == pytest.approx(1484 / 5, rel=0.15)
    assert oddities({"train": train, "dev": dev, "test": stand_in.load("test")})["dev_sources_in_train"] == 0


@pytest.mark.parametrize("form", ["jsonl", "xml"])
def test_webnlg_counts(form: str, shared_data: Path) -> None:
    task = WebNLG(WebNLG.Config(path=str(shared_data / "webnlg"), form=form))
    # Of 6,940 and 872 entries, 5 and 1 have no text that is marked good.
    assert counts(task) == {"train": (6935, 18025), "dev": (871, 2258), "test": (1862, 4928)}
    assert task.skipped("train") == {"references marked toFix": 77, "entries left without a reference": 5}
    test = task.load("test")
    assert sum("seen" in example.tags for example in test) == 971
    assert sum("unseen" in example.tags for example in test) == 891
    assert test[0].tags == ("seen", "Airport", "1 triple")
    assert WebNLG.licence_note == "non-commercial use only"


def test_webnlg_is_the_same_from_every_form(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "webnlg"
    with tarfile.open(folder / "webnlg_challenge_2017_xml.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    for split in SPLITS:
        lines, archived, unpacked = (
            WebNLG(WebNLG.Config(path=str(path), form=form)).load(split)
            for path, form in ((folder, "jsonl"), (folder, "xml"), (tmp_path, "xml"))
        )
        assert lines == archived == unpacked


def test_webnlg_linearisations(shared_data: Path) -> None:
    def source(linearisation: str) -> str:
        config = WebNLG.Config(path=str(shared_data / "webnlg"), linearisation=linearisation)
        return WebNLG(config).load("train")[0].source

    assert source("plain") == "Aarhus Airport : city served : Aarhus, Denmark"
    assert source("hu") == 'Aarhus_Airport : cityServed : "Aarhus, Denmark"'
    # LineByLineWebNLGTextDataset, language_modeling.py at 6519d30: the text begins with two spaces, one of the template
    assert source("li_liang") == ' | Aarhus_Airport : cityServed : "Aarhus, Denmark"'
    assert WebNLG.Config(linearisation="hu").template == "{source}{bos}"
    assert WebNLG.Config(linearisation="li_liang").template == " {source} {bos}"
    assert WebNLG.Config(linearisation="hu", template="{source} =>").template == "{source} =>"


def test_dart_counts(shared_data: Path) -> None:
    task = Dart(Dart.Config(path=str(shared_data / "dart")))
    # One of the 12,552 texts of the test split is empty.
    assert counts(task, ("dev", "test")) == {"dev": (2768, 6980), "test": (5097, 12551)}
    assert task.skipped("test") == {"empty references": 1}
    assert task.load("dev")[0].source == (
        "Mars Hill College : joined : 1973 | Mars Hill College : location : Mars Hill, North Carolina"
    )
    with pytest.raises(TaskError, match=r"the train split is not there: no file dart-v1.1.1-full-train.json or"):
        task.load("train")


def test_another_count_is_an_error_unless_it_is_meant(shared_data: Path, tmp_path: Path) -> None:
    for split in SPLITS:
        lines = (shared_data / "webnlg" / f"webnlg17_{split}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"webnlg17_{split}.jsonl").write_text("".join(lines[:-1]))
    expected = (
        r"4,925 references, published 4,928; 1,861 sources, published 1,862; 890 sources tagged unseen, published 891"
    )
    with pytest.raises(TaskError, match=expected):
        WebNLG(WebNLG.Config(path=str(tmp_path))).load("test")
    assert len(WebNLG(WebNLG.Config(path=str(tmp_path), check_counts=False)).load("test")) == 1861


def test_whether_counts_are_checked_does_not_change_a_trials_identity() -> None:
    from fakes import trial

    def identity(check_counts: bool) -> str:
        config = WebNLG.Config(check_counts=check_counts).model_dump(mode="json")
        task = TaskSpec(name="webnlg", target="bench.tasks.webnlg:WebNLG", config=config, data_sha256="0" * 64)
        return trial().model_copy(update={"task": task}).trial_id

    assert identity(True) == identity(False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address of a server on this machine, and the folder that it serves."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "public"), **options)

        def log_message(self, *_: Any) -> None:
            pass

    (tmp_path / "public").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", tmp_path / "public"
        running.shutdown()
        thread.join()


def test_the_public_source_is_downloaded_once_and_verified(
    server: tuple[str, Path], shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    address, public = server
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache")
    local_copy.cache_clear()
    shutil.copy(shared_data / "e2e" / "testset_w_refs.csv", public)

    def task(sha256: str) -> E2E:
        class Served(E2E):
            def files(self) -> dict[Split, PublishedFile]:
                file = PublishedFile(("testset_w_refs.csv",), f"{address}/testset_w_refs.csv", sha256)
                return dict.fromkeys(SPLITS, file)

        return Served(E2E.Config())

    right = "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd"
    assert len(task(right).load("test")) == 630
    (public / "testset_w_refs.csv").unlink()
    assert len(task(right).load("test")) == 630, "read from the cache"
    with pytest.raises(TaskError, match=r"its sha256 is edc8db68.*expected 0000.*damaged or has changed"):
        task("0" * 64).load("test")
    assert task(right).data_sha256() is not None


def test_without_a_folder_or_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    task = E2E(E2E.Config(form="paper"))
    assert all(url.startswith("https://") for url in task.data_files().values())
    with pytest.raises(
        TaskError, match=r"src1_test.txt: cannot be downloaded.*set task.path to a folder with the files"
    ):
        task.load("test")
    with pytest.raises(TaskError, match=r"the train split has no public address; set task.path to a folder with"):
        WebNLG(WebNLG.Config(form="xml")).load("train")


# What is malformed, and what the one error says of it.


def e2e(folder: Path, content: bytes, **settings: Any) -> list[Example]:
    name = "src1_test.txt" if settings.get("form") == "paper" else "testset_w_refs.csv"
    (folder / name).write_bytes(content)
    return E2E(E2E.Config(path=str(folder), check_counts=False, **settings)).load("test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'mr,ref\n"name[A]",A is here.\nname A,broken\n', r"line 3: expected 'slot\[value\], slot\[value\]'"),
        (b"mr,text\na,b\n", "line 1: no column 'ref'; the columns are mr, text"),
        (b'mr,ref\n"name[A]",\n', "no examples"),
        (b'mr,ref\n"name[A]",x\n"name[B]","y\nz",extra\n', "line 3: 3 fields, the header has 2"),
        (b'mr,ref\n"name[A]",x\n"name[B]","y\n', "line 3: not valid CSV: unexpected end of data"),
        ('mr,ref\n"name[A]",x\n"name[B]",caf\xe9\n'.encode("latin-1"), "line 3: not UTF-8: byte 0xe9"),
        (b"mr,ref\n", "no examples"),
        (b"", "is empty; its first line names the columns mr, ref"),
    ],
)
def test_malformed_e2e_files(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=rf"testset_w_refs.csv: {message}"):
        e2e(tmp_path, content)


def test_malformed_paper_lines(tmp_path: Path) -> None:
    for line in (b"name : A", b"name : A||", b"||text"):
        with pytest.raises(TaskError, match=r"src1_test.txt: line 2: expected 'slot : value"):
            e2e(tmp_path, b"name : A||Text .\n" + line + b"\n", form="paper")
    (tmp_path / "src1_dev.txt.gz").write_bytes(gzip.compress(b"name : A||Text .\n" * 1000)[:-20])
    (tmp_path / "src1_dev.txt.gz").rename(tmp_path / "src1_valid.txt.gz")
    with pytest.raises(TaskError, match=r"src1_valid.txt.gz: cannot be read: Compressed file ended"):
        E2E(E2E.Config(path=str(tmp_path), form="paper")).load("dev")


def test_a_very_long_source_is_read_whole(tmp_path: Path) -> None:
    (example,) = e2e(tmp_path, f'mr,ref\n"name[{"a" * 200_000}]",x\n'.encode())
    assert len(example.source) == 200_007


def test_an_empty_reference_of_e2e_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "testset_w_refs.csv").write_text('mr,ref\n"name[A]",\n"name[A]",A is here.\n"name[B]",\n')
    task = E2E(E2E.Config(path=str(tmp_path), check_counts=False))
    (example,) = task.load("test")
    assert example.references == ("A is here.",)
    assert task.skipped("test") == {"empty references": 2, "entries left without a reference": 2}


XML = """<?xml version="1.0" encoding="utf-8"?>
<benchmark><entries>
<entry category="Airport" eid="Id1" size="1">
<modifiedtripleset><mtriple>A | p | B</mtriple></modifiedtripleset>
<lex comment="good" lid="Id1">A &amp; B.</lex>
</entry>
</entries></benchmark>
"""


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("</entries></benchmark>", "", "line 8: not valid XML: no element found"),
        ("</lex>", "</lexx>", "line 5: not valid XML: mismatched tag"),
        ("A | p | B", "A | p", r"line 4: expected 'subject \| relation \| object', got 'A \| p'"),
        ("A | p | B", "A |  | B", r"line 4: expected 'subject \| relation \| object'"),
        (' eid="Id1"', "", "line 3: <entry> has no attribute 'eid'"),
        ("<benchmark>", '<!DOCTYPE b [<!ENTITY x "y">]><benchmark>', "line 2: the entity 'x' is declared"),
    ],
)
def test_malformed_xml(before: str, after: str, message: str) -> None:
    (entry,) = read_entries(XML, "f.xml")
    assert (entry.triples, entry.texts) == ([("A", "p", "B")], [("good", "A & B.")])
    with pytest.raises(TaskError, match=rf"f.xml: {message}"):
        read_entries(XML.replace(before, after), "f.xml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2: not valid JSON: Expecting property name"),
        ('{"id": "x"}', "line 2: 'category' must be a str, got None"),
        (
            '{"id": "x", "category": "City", "triples": [["a", "b"]], "lex": []}',
            "line 2: expected a triple of three texts",
        ),
        (
            '{"id": "x", "category": "City", "triples": [["a", "b", "c"]], "lex": ["a"]}',
            "line 2: expected an object with 'text'",
        ),
        ('{"id": "x", "category": "City", "triples": [], "lex": []}', "line 2: 'triples' is empty"),
    ],
)
def test_malformed_webnlg_lines(line: str, message: str, tmp_path: Path) -> None:
    good = '{"id": "a", "category": "City", "triples": [["a", "b", "c"]], "lex": [{"text": "t", "comment": "good"}]}'
    (tmp_path / "webnlg17_test.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(TaskError, match=rf"webnlg17_test.jsonl: {message}"):
        WebNLG(WebNLG.Config(path=str(tmp_path), check_counts=False)).load("test")


CHALLENGE_JSON = """{
  "entries": [
    {"1": {"category": "City", "modifiedtripleset": [{"subject": "A_B", "property": "isIn", "object": "C"}],
      "lexicalisations": [{"lex": "A B is in C.", "comment": "good"}, {"lex": "", "comment": "good"}]}},
    {"2": {"category": "Artist"}}
  ]
}
"""


def test_webnlg_from_the_challenges_json(tmp_path: Path) -> None:
    def load(content: str) -> list[Example]:
        (tmp_path / "test.json").write_text(content)
        return WebNLG(WebNLG.Config(path=str(tmp_path), check_counts=False)).load("test")

    with pytest.raises(TaskError, match=r"test.json: line 5: not an entry of the challenge: KeyError"):
        load(CHALLENGE_JSON)
    (example,) = load(CHALLENGE_JSON.replace(',\n    {"2": {"category": "Artist"}}', ""))
    assert example == Example(
        "test/Id1", (("A_B", "isIn", "C"),), "A B : is in : C", ("A B is in C.",), ("seen", "City", "1 triple")
    )
    with pytest.raises(TaskError, match=r"test.json: line 5: not valid JSON"):
        load(CHALLENGE_JSON[:-15])
    with pytest.raises(TaskError, match=r"test.json: line 1: expected an object with 'entries'"):
        load("[]")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"tripleset": [["a", "b"]], "annotations": [{"text": "x"}]}]', "line 2: expected a triple of three texts"),
        ('[{"tripleset": [["a", "b", "c"]]}]', "line 1: 'annotations' must be a list"),
        ('[{"tripleset": [["a", "b", "c"]], "annotations": [{}]}]', "line 1: expected an annotation with"),
        ('[{"tripleset": "a"}]', "line 1: 'tripleset' must be a list"),
        ("{}", "line 1: expected a JSON array"),
        ("[]", "no examples"),
        ('[{"tripleset": [["a", "b", "c"]], "annotations": [{"text": ""}]}]', "no examples"),
    ],
)
def test_malformed_dart_files(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "dart-v1.1.1-full-dev.json").write_text(content)
    with pytest.raises(TaskError, match=rf"dart-v1.1.1-full-dev.json: {message}"):
        Dart(Dart.Config(path=str(tmp_path), check_counts=False)).load("dev")


def test_wording() -> None:
    assert entity_words('"18L/36R"') == "18L/36R"
    assert entity_words("Harrietstown,_New_York") == "Harrietstown, New York"
    assert relation_words("elevationAboveTheSeaLevel_(in_metres)") == "elevation above the sea level (in metres)"
    assert relation_words("ICAO_Location_Identifier") == "icao location identifier"


# What the parsers must hold for any input.

slot_text = st.text(st.characters(blacklist_characters="[],", blacklist_categories=("C", "Z")), min_size=1)
value_text = st.text(st.characters(blacklist_characters="[]", blacklist_categories=("C",)))


@given(st.lists(st.tuples(slot_text, value_text), min_size=1, max_size=6))
def test_slots_read_back_what_was_written(facts: list[tuple[str, str]]) -> None:
    text = ", ".join(f"{slot}[{value}]" for slot, value in facts)
    assert slots(text, "here") == tuple(facts)


part = st.text(st.characters(blacklist_characters="|", blacklist_categories=("C", "Z")), min_size=1, max_size=8)
json_values = st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.text(), st.none()), max_size=3)


@given(st.lists(st.tuples(st.lists(st.tuples(part, part, part), min_size=1, max_size=3), part), max_size=4))
def test_benchmark_xml_reads_back_what_was_written(entries: list[tuple[list[tuple[str, str, str]], str]]) -> None:
    from xml.sax.saxutils import escape

    written = "".join(
        f'<entry category="C" eid="{number}">'
        + "".join(f"<mtriple>{escape(' | '.join(triple))}</mtriple>" for triple in triples)
        + f'<lex comment="good">{escape(text)}</lex></entry>\n'
        for number, (triples, text) in enumerate(entries)
    )
    examples = read_entries(f"<benchmark><entries>{written}</entries></benchmark>", "here")
    assert [(entry.triples, entry.texts) for entry in examples] == [(ts, [("good", text)]) for ts, text in entries]


@given(st.lists(json_values, max_size=5), st.sampled_from([None, 0, 2]))
def test_json_arrays_read_back_what_was_written(values: list[dict[str, Any]], indent: int | None) -> None:
    import json

    text = json.dumps(values, indent=indent)
    examples = list(read_json_array(text, "here"))
    assert [value for _, value in examples] == values
    lines = text.split("\n")
    assert all(lines[number - 1].lstrip(" [").startswith("{") for number, _ in examples)


@given(st.text(st.sampled_from('{}[]", :|\n<>/a1\\'), max_size=40))
def test_no_parser_fails_but_with_its_own_error(text: str) -> None:
    for parse in (
        lambda: list(read_json_array(text, "here")),
        lambda: read_entries(text, "here"),
        lambda: slots(text, "here"),
    ):
        try:
            parse()
        except TaskError as error:
            assert str(error).startswith("here")


@given(st.lists(st.lists(part, min_size=1, max_size=3), min_size=1, max_size=4))
def test_linearised_facts_keep_every_part_in_order(facts: list[list[str]]) -> None:
    text = linearise(facts)
    position = 0
    for word in (word for fact in facts for word in fact):
        position = text.index(word, position) + len(word)
