"""Scores equal those of the official scripts in all digits; other metrics have known values."""

from __future__ import annotations

import math
import random
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Literal

import pytest
from damaged_texts import damaged_dart, shuffled_words
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.lib_ter import translation_edit_rate

from bench.metrics.captions import longest_common_subsequence
from bench.metrics.checks import check_metrics
from bench.metrics.edit_rate import exact_distance, fewest_edits, num_edits
from bench.metrics.entities import coverage
from bench.metrics.form import repeats_itself
from bench.metrics.known import BUILT_IN
from bench.metrics.learned import Mauve
from bench.metrics.penn_treebank import caption_words
from bench.metrics.scoring import MetricError, score_examples, stored_scoring, with_perplexity
from bench.metrics.slots import slot_errors
from bench.metrics.tercom import distance, edits
from bench.metrics.texts import Texts, prepare
from bench.schema.record import Scores
from bench.schema.trial import JsonDict
from bench.task import Example, Scoring, Split, Task, TaskConfig
from bench.tasks.dart import Dart
from bench.tasks.e2e import E2E
from bench.tasks.splits import load_split
from bench.tasks.webnlg import WebNLG


def value(name: str, texts: Texts) -> float:
    return BUILT_IN[name](texts.scoring).measure(texts).over(range(len(texts)))


def of(predictions: list[str], references: list[list[str]], scoring: Scoring = Scoring()) -> Texts:  # noqa: B008
    return prepare(predictions, references, scoring)


def fixture(shared_data: Path, name: str) -> list[str]:
    return (shared_data / "metric_fixtures" / name).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        # BLEU and NIST are of the official script in Python (measure_scores.py -p). ROUGE-L and CIDEr were taken with
        # the package pycocoevalcap 1.2 and its PTBTokenizer in Java, which the official script calls.
        ("tgen-std", {"bleu": 66.1612, "nist": 8.5446, "rouge_l": 69.1407, "cider": 2.2312}),
        ("tgen-plus", {"bleu": 66.7169, "nist": 8.5720, "rouge_l": 69.7651, "cider": 2.2939}),
    ],
)
def test_e2e_scores_equal_the_official_script(system: str, expected: dict[str, float], shared_data: Path) -> None:
    task = E2E(E2E.Config(path=str(shared_data / "e2e")))
    examples = load_split(task, "test")
    predictions = fixture(shared_data, f"e2e_{system}.run0.test-orig.txt")
    texts = prepare(predictions, [example.references for example in examples], task.scoring)
    assert {name: round(value(name, texts), 4) for name in expected} == expected


@pytest.mark.parametrize(
    ("form", "folder", "expected"),
    [
        # What measure_scores.py -p prints of the first references, scored against the others of their sources.
        ("paper", "e2e", {"bleu": 61.18, "nist": 8.9290, "rouge_l": 63.92, "cider": 1.8945}),
        ("cleaned", "e2e_cleaned", {"bleu": 55.10, "nist": 8.1320, "rouge_l": 62.02, "cider": 3.1413}),
    ],
)
def test_other_forms_of_e2e_equal_the_official_script_too(
    form: Literal["paper", "cleaned"], folder: str, expected: dict[str, float], shared_data: Path
) -> None:
    task = E2E(E2E.Config(path=str(shared_data / folder), form=form))
    several = [example.references for example in load_split(task, "test") if len(example.references) > 1]
    texts = prepare([some[0] for some in several], [some[1:] for some in several], task.scoring)
    for name, official in expected.items():
        assert round(value(name, texts), 4 if name in ("nist", "cider") else 2) == official, name


def test_slot_error_rate_tells_the_faithful_system(shared_data: Path) -> None:
    task = E2E(E2E.Config(path=str(shared_data / "e2e")))
    examples = load_split(task, "test")
    rates = []
    for system in ("tgen-std", "tgen-plus"):
        predictions = fixture(shared_data, f"e2e_{system}.run0.test-orig.txt")
        texts = prepare(
            predictions, [example.references for example in examples], task.scoring, [e.facts for e in examples]
        )
        rates.append(round(value("slot_error_rate", texts), 1))
    # tgen-plus was made to leave no slot out, as far as its own expressions see it.
    assert rates == [3.7, 2.2]


def test_webnlg_scores_equal_multi_bleu(shared_data: Path) -> None:
    task = WebNLG(WebNLG.Config(path=str(shared_data / "webnlg")))
    examples = load_split(task, "test")
    references = [example.references for example in examples]
    predictions = fixture(shared_data, "webnlg17_all_bart-base.tok.lc.txt")
    texts = prepare(predictions, references, task.scoring)
    for number in range(3):
        published = fixture(shared_data, f"webnlg17_all-cat-reference{number}.lex")
        ours = [some[number] if number < len(some) else "" for some in texts.prepared_references]
        assert ours == published
    bleu = BUILT_IN["bleu"](texts.scoring).measure(texts)
    parts = {
        part: [index for index, example in enumerate(examples) if part in example.tags] for part in ("seen", "unseen")
    }
    assert round(bleu.over(range(len(examples))), 2) == 52.98
    assert {part: round(bleu.over(sources), 2) for part, sources in parts.items()} == {"seen": 62.36, "unseen": 41.70}
    # Of the challenge's own evaluation.py, which folds predictions, multi-bleu.perl -lc and tercom 7.25.
    folded = WebNLG(WebNLG.Config(path=str(shared_data / "webnlg"), fold_predictions=True))
    texts = prepare(predictions, references, folded.scoring)
    assert round(value("bleu", texts), 2) == 53.36
    assert value("ter", texts) == pytest.approx(42.01650920705773)


def test_dart_references_are_prepared_as_published(shared_data: Path) -> None:
    task = Dart(Dart.Config(path=str(shared_data / "dart")))
    examples = task.load("test")
    references = [example.references for example in examples]
    texts = prepare([some[0] for some in references], references, task.scoring)
    for number in range(3):
        published = (shared_data / "dart" / f"all-delex-reference{number}.lex").read_text().split("\n")[:-1]
        ours = [some[number] if number < len(some) else "" for some in texts.prepared_references]
        # The text that the test split leaves empty is an empty line there.
        assert ours == published


def test_dart_scores_equal_the_official_script(shared_data: Path) -> None:
    # Of run_eval_on_dart.sh (multi-bleu.perl, prepare_files.py with tercom 7.25) on these texts. Of the authors'
    # example, the output of BART-large, it prints BLEU 48.56, METEOR 39.22 and TER 44.70.
    texts = damaged_dart(shared_data)
    assert round(value("bleu", texts), 2) == 39.40
    assert value("ter", texts) == pytest.approx(25.38627679016448)


def test_multi_bleu_counts_missing_references_as_empty() -> None:
    scoring = Scoring(bleu="multi-bleu", max_references=2)
    # Closest in length to no words is the empty second reference, so that nothing is too short.
    texts = of(["", "a b c d e"], [["one two three four"], ["a b c d e", "f"]], scoring)
    assert value("bleu", texts) == pytest.approx(100.0)
    assert value("bleu", of(["", "a b c d e"], [["one two three four"], ["a b c d e", "f"]])) < 60


def test_mteval_counts_words_as_pymteval() -> None:
    """By hand after pymteval.py: a text of n words has n - 3 n-grams of order 4, an empty one counts as a word."""
    predictions, references = ["", "A b c d e f g h", "a"], [["x"], ["a b c d e f g h"], ["a"]]
    precisions = (9 / (1 + 8 + 1), 7 / (0 + 7 + 0), 6 / (-1 + 6 - 1), 5 / (-2 + 5 - 2))
    expected = 100 * math.exp(sum(math.log(precision) for precision in precisions) / 4)
    scoring = Scoring(bleu="mteval", lowercase=True)
    assert value("bleu", of(predictions, references, scoring)) == pytest.approx(expected)
    assert value("bleu", of(["", "a b"], [["x"], ["a b"]], scoring)) == pytest.approx(0, abs=0.01)


def test_nist_of_a_corpus_worked_by_hand() -> None:
    texts = of(["a b", "c"], [["a b"], ["c d", "c"]], Scoring(lowercase=True))
    # Five words in all references: a, b, d once, c twice. Their bits: log2(5), log2(5), log2(5), log2(5/2).
    unigrams = (2 * math.log2(5) + math.log2(5 / 2)) / 3
    bigrams = math.log2(1 / 1) / 1  # a is followed by b wherever it occurs
    ratio = 3 / (2 + 1.5)
    penalty = math.exp(math.log(0.5) / math.log(1.5) ** 2 * math.log(ratio) ** 2)
    assert value("nist", texts) == pytest.approx(penalty * (unigrams + bigrams))


short_texts = st.lists(st.sampled_from("abcd"), max_size=9)


@given(short_texts, short_texts)
def test_edit_rate_equals_sacrebleus(words: list[str], reference: list[str]) -> None:
    assert (
        num_edits(list(words), list(reference), fewest_edits(words, reference))
        == (translation_edit_rate(list(words), list(reference))[0])
    )


def test_edit_rate_equals_tercoms() -> None:
    # Of tercom 7.25 in Java, whose beam decides five of these; sacrebleu's way counts others.
    pairs = shuffled_words(100)
    found = [edits(tuple(text), tuple(reference), fewest_edits(text, reference)) for text, reference in pairs]
    assert sum(found) == 1716
    beam = [distance(tuple(text), tuple(reference)) != exact_distance(text, reference) for text, reference in pairs]
    assert sum(beam) == 5
    assert (edits((), ("a",)), edits(("a", "b"), ()), edits(("b", "a"), ("a", "b"))) == (1, 2, 1)


def test_edit_rate_of_real_texts_equals_sacrebleus(shared_data: Path) -> None:
    task = WebNLG(WebNLG.Config(path=str(shared_data / "webnlg")))
    chosen = random.Random(0).sample(range(1862), 20)
    predictions = fixture(shared_data, "webnlg17_all_bart-base.tok.lc.txt")
    references = [example.references for example in task.load("test")]
    texts = prepare([predictions[n] for n in chosen], [references[n] for n in chosen], task.scoring)
    measured = BUILT_IN["ter"](texts.scoring).measure(texts)
    for index in range(len(chosen)):
        words = texts.prepared_predictions[index].split()
        split = [reference.split() for reference in texts.prepared_references[index]]
        edits = min(translation_edit_rate(words, reference)[0] for reference in split)
        assert measured.over([index]) == pytest.approx(100 * edits / (sum(map(len, split)) / len(split)))


@given(short_texts, short_texts)
def test_longest_common_subsequence(one: list[str], two: list[str]) -> None:
    table = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(two):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    assert longest_common_subsequence(one, two) == table[-1][-1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's cheap, isn't it?", "it 's cheap is n't it"),
        ("Family-friendly pub; prices: £20-25 (3/5)!", "family-friendly pub prices # 20-25 -lrb- 3/5 -rrb-"),
        ("You cannot dine at Mr. Smith's... ever.", "you can not dine at mr. smith 's ever"),
        ("more than £ 30 -- 'The Mill'", "more than # 30 the mill"),
        ("", ""),
    ],
)
def test_words_of_captions(text: str, words: str) -> None:
    assert " ".join(caption_words(text)) == words


ALIMENTUM = {"name": "Alimentum", "area": "city centre", "familyFriendly": "no", "priceRange": "less than £20"}


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ("Alimentum, in the city centre, is cheap and does not welcome children.", {}),
        ("Alimentum is under £20 and for adults only, in the centre of the city.", {}),
        ("Alimentum is family-friendly, in the city and moderately priced.", {"familyfriendly": 1, "pricerange": 1}),
        ("In the city centre is a cheap place that is not kid friendly.", {"name": 0}),
        ("Alimentum is a pub in the city, cheap, not for families. It serves sushi.", {"eattype": 2, "food": 2}),
        ("", {"name": 0, "area": 0, "familyfriendly": 0, "pricerange": 0}),
    ],
)
def test_slot_errors(text: str, errors: dict[str, int]) -> None:
    kinds = ("missing", "wrong", "added")
    assert slot_errors(ALIMENTUM, text) == {slot: kinds[kind] for slot, kind in errors.items()}


def test_slots_of_the_paper_form_are_the_same() -> None:
    paper = {"name": "Alimentum", "Type": "pub", "price": "£ 20 - 25", "family friendly": "yes"}
    assert slot_errors(paper, "Alimentum is a kid - friendly pub around £ 20 - 25 .") == {}


@pytest.mark.parametrize(
    ("entity", "text", "mentioned"),
    [
        ("Aarhus_Airport", "The airport of Aarhus is busy.", True),
        ('"18L/36R"', "Its runway is 18L/36R.", True),
        ("2702.0", "It is 2,702 metres long.", True),
        ("1947-08-16", "He was born on August 16th, 1947.", True),
        ("1947-08-16", "He was born on 16 August 1948.", False),
        ("Adolfo_Suárez_Madrid\u2013Barajas_Airport", "adolfo suarez madrid - barajas airport", True),
        ("Alan_Bean_(astronaut)", "Alan Bean went to the moon.", True),
        ("Bakewell_pudding", "The pudding is Bakewell's.", True),
        ("Bakewell_pudding", "The tart is from Bakewell.", False),
    ],
)
def test_entities_are_found_in_the_forms_that_people_use(entity: str, text: str, mentioned: bool) -> None:
    assert coverage([(entity, "relation", "[TABLECONTEXT]")], text) == (int(mentioned), 1)


def test_references_cover_the_entities_of_facts() -> None:
    from bench.tasks.facts.task import Facts

    for example in Facts(Facts.Config()).load("test")[::10]:
        assert all(covered == total for covered, total in (coverage(example.facts, r) for r in example.references))


def test_form_of_predictions() -> None:
    texts = prepare(
        ["The cat.", "", "the cat the cat the cat the cat the cat", "a dog"],
        [["the  cat."], ["a"], ["b c"], ["a dog that barks"]],
        Scoring(lowercase=True),
        truncated=[False, False, True, False],
    )
    found = {name: value(name, texts) for name in ("exact_match", "empty_rate", "truncated_rate", "repetition_rate")}
    assert found == {"exact_match": 25.0, "empty_rate": 25.0, "truncated_rate": 25.0, "repetition_rate": 25.0}
    assert value("length_ratio", texts) == (2 + 0 + 10 + 2) / (2 + 1 + 2 + 4)
    assert not repeats_itself(["New", "York", "and", "New", "York", "and", "New", "York"])


def example(number: int, prediction_of: str, tags: tuple[str, ...] = ()) -> Example:
    return Example(f"e{number}", (("s", "r", "o"),), f"source {number}", (prediction_of, "another text"), tags)


def test_scores_by_tag_equal_scores_of_those_sources_alone() -> None:
    predictions = ["the cat sat on the mat", "a dog ran away quickly today", "nothing alike at all here"]
    examples = [
        example(0, "the cat sat on a mat", ("seen",)),
        example(1, "the dog ran away quickly", ("seen", "odd")),
        example(2, "some other words", ("unseen",)),
    ]
    found = score_examples(examples, predictions, Scoring()).scores()
    alone = score_examples(examples[:2], predictions[:2], Scoring()).scores()
    assert found.by_tag["seen"] == pytest.approx(alone.values)
    assert found.sources_by_tag == {"odd": 1, "seen": 2, "unseen": 1}
    assert found.higher_is_better["bleu"] is True
    assert found.higher_is_better["ter"] is False
    assert "length_ratio" not in found.higher_is_better
    assert set(found.signatures) == set(found.values)
    assert list(found.values)[:4] == ["bleu", "chrf", "ter", "rouge_l"], "official ones first"
    assert Scores.model_validate_json(found.model_dump_json()) == found


def test_every_score_can_be_had_from_what_is_stored() -> None:
    predictions = ["the cat sat on the mat", "a dog ran away quickly today"]
    examples = [example(0, "the cat sat on a mat"), example(1, "the dog ran away quickly")]
    system = score_examples(examples, predictions, E2E.scoring)
    stored = Scores.model_validate_json(system.scores().model_dump_json())
    assert stored_scoring(stored) == E2E.scoring
    again = score_examples(examples, predictions, stored_scoring(stored))
    assert again.over([1, 1, 0]) == system.over([1, 1, 0])
    assert system.source_scores(0)["bleu"] > system.source_scores(1)["bleu"]


def test_perfect_and_empty_predictions() -> None:
    perfect = of(["one two three four five"], [["one two three four five"]])
    assert {name: value(name, perfect) for name in ("bleu", "chrf", "ter", "rouge_l")} == pytest.approx(
        {"bleu": 100, "chrf": 100, "ter": 0, "rouge_l": 100}
    )
    empty = of(["", ""], [["one two"], ["three"]], E2E.scoring)
    for name in ("bleu", "nist", "rouge_l", "cider", "chrf", "exact_match", "length_ratio"):
        assert value(name, empty) == 0, name
    assert value("ter", empty) == 100


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "1 predictions for 2 sources"),
        ([], [], "0 predictions for 0 sources"),
        (["a"], [[]], "source 1 has no reference"),
    ],
)
def test_what_cannot_be_scored_is_an_error(predictions: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(predictions, references)


def test_absent_metrics_are_named_and_those_asked_for_are_errors() -> None:
    system = score_examples([example(0, "a b")], ["a b"], Scoring())
    assert system.absent == {
        "bertscore": "the package bert-score is not installed",
        "bleurt": "the package bleurt-pytorch is not installed",
        "mauve": "the package mauve is not installed",
    }
    with pytest.raises(MetricError, match="the metric 'mauve' cannot be had: the package mauve is not installed"):
        score_examples([example(0, "a b")], ["a b"], Scoring(), also=["mauve"])

    class Asking(Task):
        """Asks for a metric."""

        def data_files(self) -> dict[Split, str]:
            return {}

        def load(self, split: Split) -> list[Example]:
            return []

    with pytest.raises(MetricError, match=r"task.metrics: there is no metric 'bleau'; known: bleu, nist"):
        check_metrics(Asking(TaskConfig(metrics=("bleau",))), [example(0, "a")])
    with pytest.raises(MetricError, match=r"task.metrics: 'slot_error_rate' cannot be had: the sources are not slots"):
        check_metrics(Asking(TaskConfig(metrics=("slot_error_rate",))), [example(0, "a")])


def test_learned_metrics_are_had_where_package_and_weights_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[JsonDict] = []

    def compute_mauve(**settings: object) -> SimpleNamespace:
        calls.append(dict(settings))
        return SimpleNamespace(mauve=0.5)

    fake = ModuleType("mauve")
    fake.compute_mauve = compute_mauve  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mauve", fake)
    fake.__spec__ = SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setattr("bench.metrics.learned.version", lambda package: "9")
    system = score_examples([example(0, "a b")], ["a b"], Scoring())
    assert "the weights of gpt2-large are not in the hub's cache" in system.absent["mauve"]
    folder = tmp_path / "my-gpt2"
    folder.mkdir()
    monkeypatch.setenv("TUNEOFF_MAUVE_MODEL", f"{folder}/")
    assert score_examples([example(0, "a b")], ["a b"], Scoring()).absent["mauve"] == "not asked for"
    scores = score_examples([example(0, "a b")], ["a c"], Scoring(), also=["mauve"]).scores()
    assert scores.values["mauve"] == 50.0
    assert scores.signatures["mauve"] == "first reference|my-gpt2|mauve-text:9"
    assert calls[0]["p_text"] == ["a b"]
    assert calls[0]["q_text"] == ["a c"]
    assert calls[0]["featurize_model_name"] == f"{folder}/"
    asked = prepare(["a c"], [["a b"]], Scoring())
    (folder / "config.json").write_text('{"num_hidden_layers": 2}')
    first = Mauve(Scoring()).signature(asked)
    assert re.fullmatch(r"first reference\|my-gpt2 \(config [0-9a-f]{8}\)\|mauve-text:9", first)
    (folder / "config.json").write_text('{"num_hidden_layers": 3}')
    assert Mauve(Scoring()).signature(asked) != first
    monkeypatch.delenv("TUNEOFF_MAUVE_MODEL")
    assert Mauve(Scoring()).signature(asked) == "first reference|gpt2-large|mauve-text:9"


def test_perplexity_of_the_references() -> None:
    scores = score_examples([example(0, "a b")], ["a b"], Scoring()).scores()
    found = with_perplexity(scores, math.log(8), 1)
    assert found.values["reference_perplexity"] == pytest.approx(8)
    assert found.higher_is_better["reference_perplexity"] is False
    for loss, said in ((float("nan"), "nan"), (61.25, "61.2")):
        without = with_perplexity(scores, loss, 1)
        assert without.values == scores.values
        assert without.absent == {
            **scores.absent,
            "reference_perplexity": f"the loss per target token is {said}, and above 50 it has no meaning",
        }
