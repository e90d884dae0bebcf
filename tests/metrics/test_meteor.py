"""METEOR: its words, alignments and scores on files made here, and the program's own scores where its files are."""

from __future__ import annotations

import gzip
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from damaged_texts import damaged_dart

from bench.metrics.known import BUILT_IN
from bench.metrics.meteor import Meteor, score, statistics
from bench.metrics.meteor.align import EXACT, PARAPHRASE, STEM, SYNONYM, Match, align
from bench.metrics.meteor.resources import (
    FOLDER_VARIABLE,
    MeteorResources,
    folder,
    read_lexicon,
    read_paraphrases,
)
from bench.metrics.meteor.words import meteor_words
from bench.metrics.scoring import score_examples
from bench.metrics.texts import prepare
from bench.task import Example, Scoring
from bench.tasks.dart import Dart
from bench.tasks.e2e import E2E
from bench.tasks.splits import load_split
from bench.tasks.webnlg import WebNLG

FILES = {
    "nonbreaking/english.prefixes": "# comment\nMr\nNo #NUMERIC_ONLY#\n",
    "function/english.words": "the\na\nis\n",
    "synonym/english.exceptions": "man\nmen\n",
    "synonym/english.synsets": "man\n1 2\nadult\n2\ncheap\n5\ninexpensive\n5\nbox\n7\ncarton\n7\n",
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of METEOR, small ones."""
    (tmp_path / "data").mkdir()
    with zipfile.ZipFile(tmp_path / "meteor-1.5.jar", "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    table = "0.5\nclose to\nnear\n0.1\nclose to\nby the side of\n0.1\nnear\nnext to\n"
    (tmp_path / "data" / "paraphrase-en.gz").write_bytes(gzip.compress(table.encode()))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def resources(place: Path, *texts: str) -> MeteorResources:
    return MeteorResources(read_lexicon(place), read_paraphrases(place, [text.split() for text in texts]))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 1,000 U.S. dollars, isn't it?", "it 's 1,000 us dollars , isn 't it ?"),
        ("Mr. Smith... No. 5, no. Well-known \u201cpub\u201d.", 'mr. smith ... no. 5 , no . well known " pub " .'),
        ("the 1990's \u2013 caf\u00e9 #1", "the 1990 's - caf\u00e9 # 1"),
        ("", ""),
    ],
)
def test_words(text: str, words: str, files: Path) -> None:
    assert " ".join(meteor_words(text, read_lexicon(files).prefixes)) == words


def test_every_kind_of_match(files: Path) -> None:
    hypothesis, reference = (
        "the men pay for cheap boxes near town",
        "the man paid for inexpensive cartons close to town",
    )
    alignment = align(hypothesis.split(), reference.split(), resources(files, hypothesis, reference))
    assert alignment.matches == (
        Match(0, 1, 0, 1, EXACT),
        Match(1, 1, 1, 1, SYNONYM),
        Match(3, 1, 3, 1, EXACT),
        Match(4, 1, 4, 1, SYNONYM),
        Match(5, 1, 5, 1, SYNONYM),
        Match(6, 2, 6, 1, PARAPHRASE),
        Match(8, 1, 7, 1, EXACT),
    )
    assert alignment.chunks == 2
    (stemmed,) = align(["pays"], ["paying"], resources(files)).matches
    assert stemmed.module == STEM


def test_fewest_chunks_win(files: Path) -> None:
    hypothesis, reference = ["a", "b", "a", "c"], ["a", "c"]
    alignment = align(hypothesis, reference, resources(files))
    assert [match.prediction_start for match in alignment.matches] == [2, 3]
    assert alignment.chunks == 1


def test_scores_worked_by_hand(files: Path) -> None:
    known = resources(files)
    whole = statistics(["the", "cat"], ["the", "cat"], known)
    assert score(whole) == pytest.approx(1.0)
    # Content word and function word: 0.75 + 0.25 of each side; the second content word of the reference is missing.
    part = statistics(["the", "cat"], ["the", "cat", "sat"], known)
    recall = 1.0 / (0.75 * 2 + 0.25)
    mean = 1 / (0.15 / 1.0 + 0.85 / recall)
    assert score(part) == pytest.approx(mean * (1 - 0.6 * (1 / 2) ** 0.2))
    assert score(statistics([], ["a"], known)) == 0
    assert score(statistics(["x"], ["a"], known)) == 0


def test_the_corpus_adds_statistics_up(files: Path) -> None:
    texts = prepare(["the cat", "the cat"], [["a dog", "the cat"], ["the cat sat"]], Scoring())
    measured = BUILT_IN["meteor"](texts.scoring).measure(texts)
    assert measured.per_example is not None
    assert measured.per_example[0] == pytest.approx(100)
    assert measured.over([0]) == pytest.approx(100)
    assert measured.per_example[1] < measured.over([0, 1]) < 100
    assert measured.over([1, 1]) == pytest.approx(measured.over([1])), "a source may be taken twice"


def test_all_references_of_dart_count(files: Path) -> None:
    texts = prepare(["the cat"], [["a dog", "some box", "the cat"]], Dart.scoring)
    assert BUILT_IN["meteor"](texts.scoring).measure(texts).over([0]) == pytest.approx(100)
    assert BUILT_IN["ter"](texts.scoring).measure(texts).over([0]) == 0
    first_alone = replace(Dart.scoring, single_reference=("meteor", "ter"))
    texts = prepare(["the cat"], [["a dog", "some box", "the cat"]], first_alone)
    assert BUILT_IN["meteor"](texts.scoring).measure(texts).over([0]) < 50
    assert BUILT_IN["ter"](texts.scoring).measure(texts).over([0]) == 100


def test_meteor_is_named_as_absent_where_its_files_are_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    examples = [Example("a", (("name", "A"),), "name : A", ("A is here.",))]
    system = score_examples(examples, ["A is here."], E2E.scoring)
    assert system.absent["meteor"].startswith(
        "its files meteor-1.5.jar and data/paraphrase-en.gz are not there: install"
    )
    assert "meteor" not in system.measured


@pytest.fixture
def program() -> None:
    """The files of the program itself."""
    if (reason := Meteor(Scoring()).absent(prepare(["a"], [["a"]], Scoring()))) is not None:
        pytest.skip(f"METEOR 1.5: {reason}")


# Of METEOR 1.5 in Java (-l en -norm), on E2E after PTBTokenizer as its official script calls it.
@pytest.mark.full
@pytest.mark.parametrize(("system", "expected"), [("tgen-std", 45.0377), ("tgen-plus", 45.6619)])
def test_e2e_meteor_equals_the_program(system: str, expected: float, program: None, shared_data: Path) -> None:
    task = E2E(E2E.Config(path=str(shared_data / "e2e")))
    predictions = (shared_data / "metric_fixtures" / f"e2e_{system}.run0.test-orig.txt").read_text().splitlines()
    texts = prepare(predictions, [example.references for example in load_split(task, "test")], task.scoring)
    assert round(BUILT_IN["meteor"](texts.scoring).measure(texts).over(range(len(texts))), 4) == expected


@pytest.mark.full
def test_dart_meteor_equals_the_program(program: None, shared_data: Path) -> None:
    """With all three references, as prepare_files.py hands them over."""
    texts = damaged_dart(shared_data)
    assert BUILT_IN["meteor"](texts.scoring).measure(texts).over(range(len(texts))) == pytest.approx(42.45584582013158)


@pytest.mark.full
def test_webnlg_meteor_equals_the_program(program: None, shared_data: Path) -> None:
    assert folder() is not None
    task = WebNLG(WebNLG.Config(path=str(shared_data / "webnlg")))
    fixture = shared_data / "metric_fixtures" / "webnlg17_all_bart-base.tok.lc.txt"
    references = [example.references for example in load_split(task, "test")]
    texts = prepare(fixture.read_text().splitlines(), references, task.scoring)
    assert round(BUILT_IN["meteor"](texts.scoring).measure(texts).over(range(len(texts))), 4) == 40.1973
    # Of the challenge's own evaluation.py, which folds predictions.
    folded = replace(task.scoring, preparation="webnlg_folded")
    texts = prepare(fixture.read_text().splitlines(), references, folded)
    assert BUILT_IN["meteor"](texts.scoring).measure(texts).over(range(len(texts))) == pytest.approx(40.32456015730364)
