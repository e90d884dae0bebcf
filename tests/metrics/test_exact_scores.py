"""Small scores by hand: borders, divisors and choices that whole corpora hardly touch."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_meteor import FILES, files, resources

from bench.metrics import checks
from bench.metrics.answer_forms import number
from bench.metrics.captions import Cider
from bench.metrics.entities import EntityCoverage, coverage
from bench.metrics.form import LengthRatio, repeats_itself
from bench.metrics.known import BUILT_IN, class_problem
from bench.metrics.learned import Bleurt, _num_layers
from bench.metrics.meteor.align import EXACT, Match, _phrases, align
from bench.metrics.meteor.resources import read_lexicon, read_paraphrases
from bench.metrics.metric import Metric
from bench.metrics.scripts import _foreign_marks, _script
from bench.metrics.slots import SlotErrorRate
from bench.metrics.sums import ter, unsmoothed_bleu
from bench.metrics.texts import Texts, prepare
from bench.task import Example, Scoring, TaskConfig

__all__ = ["files"]  # a fixture of the tests of METEOR


def texts_of(predictions: list[str], facts: Sequence[Sequence[Sequence[str]]] = ()) -> Texts:
    return prepare(predictions, [["a b"]] * len(predictions), Scoring(), facts or [()] * len(predictions))


def test_numbers_have_up_to_four_hundred_digits() -> None:
    assert number("1e400") == Fraction(10**400)
    assert number("1e401") is None
    assert number("1e-400") == Fraction(1, 10**400)
    assert number("1e-401") is None
    assert number("9" * 400) == Fraction(int("9" * 400))
    assert number("9" * 401) is None


def test_references_are_checked_on_examples_from_all_over_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    perfect = checks._perfect

    def hear(task: Any, examples: Sequence[Example]) -> Texts:
        seen.append([example.id for example in examples])
        return perfect(task, examples)

    monkeypatch.setattr(checks, "ENOUGH", 2)
    monkeypatch.setattr(checks, "_perfect", hear)
    examples = [Example(str(n), (), f"source {n}", ("A text with several words.",), ()) for n in range(5)]
    task: Any = SimpleNamespace(scoring=Scoring(), config=TaskConfig())
    checks.check_metrics(task, examples)
    assert seen == [["0", "3"]]


def test_half_of_the_entities_are_fifty_percent() -> None:
    found = EntityCoverage(Scoring())
    texts = texts_of(["Ann went home."], [[("Ann", "knows", "Bob")]])
    assert found.measure(texts).over([0]) == 50.0
    assert found.score(np.array([0.0, 0.0])) == 0.0


@pytest.mark.parametrize("written", ["May 11, 2005", "11 May 2005", "the 11th of May 2005", "2005-05-11"])
def test_dates_are_found_as_people_write_them(written: str) -> None:
    assert coverage([("Ann", "born on", "2005-05-11")], f"Ann was born on {written}.") == (2, 2)
    assert coverage([("Ann", "born on", "2005-05-12")], f"Ann was born on {written}.") == (1, 2)


def test_every_slot_that_is_missing_counts_once() -> None:
    rate = SlotErrorRate(Scoring())
    texts = texts_of(["It is cheap."], [[("name", "Zizzi")]])
    assert rate.measure(texts).over([0]) >= 100.0
    assert rate.score(np.array([[1.0, 1.0], [1.0, 4.0], [0.0, 0.0]])).tolist() == [100.0, 25.0, 0.0]


def test_a_length_is_divided_by_that_of_the_reference() -> None:
    assert LengthRatio(Scoring()).score(np.array([[3.0, 1.0], [3.0, 2.0], [3.0, 0.0]])).tolist() == [3.0, 1.5, 3.0]


def test_a_run_of_four_words_three_times_is_a_repetition() -> None:
    assert repeats_itself(list("abcdabcdabcd"))
    assert not repeats_itself(list("abcdabcdxabc"))
    assert not repeats_itself(["a"])


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({}, None),
        ({"higher_is_better": None, "best": None}, None),
        ({"name": "My"}, "its name is 'My'; it must be a text of small letters, digits and _, e.g. 'my_score'"),
        ({"name": "2nd"}, "its name is '2nd'"),
        ({"name": None}, "its name is None"),
        ({"higher_is_better": 1}, "its higher_is_better is 1; it must be True, False or None"),
        ({"higher_is_better": "up"}, "its higher_is_better is 'up'"),
        ({"best": True}, "its best is True"),
        ({"best": float("inf")}, "its best is inf"),
        ({"best": "100"}, "its best is '100'"),
    ],
)
def test_attributes_of_a_metric_are_checked(attributes: dict[str, Any], problem: str | None) -> None:
    kind = type("Mine", (Metric,), {"name": "my_score2", "higher_is_better": True, "best": 100, **attributes})
    found = class_problem(kind)
    assert (found is None) if problem is None else (found or "").startswith(problem)


@pytest.mark.parametrize(("layers", "chosen"), [(24, 17), (12, 9), (25, 19), (1, 1)])
def test_bertscore_takes_the_layer_of_its_authors_or_three_quarters(layers: int, chosen: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": layers}))
    assert _num_layers(str(tmp_path)) == chosen


def test_bleurt_is_that_of_the_best_reference(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Fake:
        @classmethod
        def from_pretrained(cls, folder: str) -> Fake:
            assert folder == str(tmp_path)
            return cls()

        def eval(self) -> Fake:
            return self

        def __call__(self, first: Any = None, second: Any = None, **inputs: Any) -> Any:
            if first is None:  # the model
                return SimpleNamespace(logits=np.array(inputs["lengths"]))
            return {"lengths": [abs(len(one) - len(other)) / 10 for one, other in zip(first, second, strict=True)]}

    package, torch = ModuleType("bleurt_pytorch"), ModuleType("torch")
    package.BleurtForSequenceClassification = package.BleurtTokenizer = Fake  # type: ignore[attr-defined]
    torch.inference_mode = nullcontext  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bleurt_pytorch", package)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setenv("TUNEOFF_BLEURT_MODEL", str(tmp_path))
    texts = prepare(["ab", "abcd"], [["a", "abcd"], ["abc"]], Scoring())
    assert Bleurt(Scoring()).values(texts) == pytest.approx([20.0, 10.0])


def test_exact_matches_come_before_a_paraphrase_of_more_words(files: Path) -> None:
    words = resources(files, "near close to")
    assert align(["near"], ["near", "close", "to"], words).matches == (Match(0, 1, 0, 1, EXACT),)


def test_a_paraphrase_ends_where_the_text_ends(files: Path) -> None:
    words = resources(files, "it is near next to it", "close to")
    assert words.longest_phrase == 2
    assert _phrases(["is", "near"], ["next", "to"], words) == [(1, 1, 0, 2)]
    assert _phrases(["close", "to"], ["near"], words) == [(2, 0, 0, 1)]


def test_only_paraphrases_between_phrases_of_the_texts_are_kept(files: Path) -> None:
    assert read_paraphrases(files, [["near"], ["close", "to"]]) == {("close", "to"): [("near",)]}
    assert read_paraphrases(files, [["near"]]) == {}


def test_words_of_three_letters_have_base_forms_and_those_in_ss_have_none(files: Path) -> None:
    assert "man\n1 2" in FILES["synonym/english.synsets"]
    words = resources(files, "")
    lexicon = read_lexicon(files)
    assert words.synsets("men") == lexicon.synsets["man"], "an irregular form"
    assert words.synsets("boxes") == lexicon.synsets["box"]
    lexicon.synsets["up"] = lexicon.synsets["a"] = lexicon.synsets["boss"] = frozenset({9})
    lexicon.synsets["bos"] = frozenset({8})
    try:
        assert resources(files, "").synsets("ups") == {9}
        assert resources(files, "").synsets("as") == frozenset(), "a word of two letters is its own base"
        assert resources(files, "").synsets("boss") == {9}
    finally:
        read_lexicon.cache_clear()


def test_the_script_of_a_letter_is_named_whatever_its_width() -> None:
    assert _script("\uff71") == "KATAKANA"
    assert _script("\uff21") == "LATIN"
    assert _script("A") == "LATIN"
    assert _script("1") is None


def test_marks_in_a_fifth_of_the_texts_are_named_the_commonest_first() -> None:
    marks = "\u00ab\u00bb\u201e\u201c\u2026"
    texts = [f"{marks[0]}a {marks[0]}b", "".join(f"{mark}a " for mark in marks)]
    assert _foreign_marks([*texts, *["b"] * 8])[0] == marks[0]
    assert len(_foreign_marks([*texts, *["b"] * 8])) == 4
    assert _foreign_marks([*texts, *["b"] * 9]) == []


def test_bleu_without_smoothing_by_hand() -> None:
    sums = np.array(
        [
            [6, 5, 5, 3, 2, 1, 6, 5, 4, 3],
            [5, 6, 5, 4, 3, 2, 5, 4, 3, 2],
            [6, 5, 5, 3, 2, 0, 6, 5, 4, 3],  # no match of four words
            [3, 3, 3, 2, 1, 0, 3, 2, 1, 0],  # too short for four words
        ],
        dtype=np.float64,
    )
    longer = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    shorter = 100 * np.exp(1 - 6 / 5)
    assert unsmoothed_bleu(sums) == pytest.approx([longer, shorter, 0.0, 0.0])


def test_edits_of_an_empty_reference_are_a_hundred_percent() -> None:
    assert ter(np.array([[3.0, 4.0], [0.0, 4.0], [3.0, 0.0], [0.0, 0.0]])).tolist() == [75.0, 0.0, 100.0, 0.0]


def test_the_best_scores_and_what_depends_on_other_sources() -> None:
    best = {name: kind.best for name, kind in BUILT_IN.items() if kind.best is not None}
    of_labels = dict.fromkeys(("accuracy", "macro_f1"), 100.0)
    of_texts = dict.fromkeys(("bleu", "meteor", "rouge_l", "chrf", "exact_match"), 100.0)
    assert best == {**of_labels, **of_texts, "cider": 10.0, "ter": 0.0, "length_ratio": 1.0, "empty_rate": 0.0}
    assert [name for name, kind in BUILT_IN.items() if kind.of_all_sources] == ["cider"]


def test_cider_of_a_longer_text_is_less_by_a_bell_of_six_pairs_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    references = [["ann sees bob"], ["cid likes dan"]]
    texts = prepare(["ann sees bob ann sees bob x y z", "cid likes dan"], references, Scoring())
    longer, same = Cider(Scoring()).values(texts)
    assert same == pytest.approx(7.5), "texts of three words have no run of four"
    monkeypatch.setattr("bench.metrics.captions.SIGMA", 1e9)
    without_penalty, _ = Cider(Scoring()).values(texts)
    assert 0 < without_penalty < 7.5
    assert longer / without_penalty == pytest.approx(np.exp(-((8 - 2) ** 2) / (2 * 6**2)))


def test_entities_are_those_of_triples() -> None:
    texts = texts_of(["a"], [[("Ann", "knows", "Bob")]])
    assert EntityCoverage(Scoring()).absent(texts) is None
    for facts in ([("name", "Ann")], []):
        assert EntityCoverage(Scoring()).absent(texts_of(["a"], [facts])) == "the sources are not triples"
    assert coverage([("Ann", "height", "1.50")], "Ann: 1.5") == (2, 2)
    assert coverage([("Ann", "number", "007")], "Ann: 7") == (2, 2)
    assert coverage([("Ann", "number", "70")], "Ann: 7") == (1, 2)
