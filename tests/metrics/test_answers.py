"""Answers inside texts: how they are found and compared, and the accuracy."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import trial, varied

from bench.config.resolver import RegistryResolver
from bench.metrics.answer_forms import number, plain
from bench.metrics.answers import answer_of, boxed, choice
from bench.metrics.checks import answers_missing, check_metrics
from bench.metrics.metric import MetricError, with_values
from bench.metrics.scoring import score_examples, stored_scoring
from bench.plugins.registry import make_task
from bench.statistics.resampling import exact_paired_p_value
from bench.task import Answer, Example, Scoring


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("She pays 3 * 4 = 12 dollars.\n#### 12", 12),
        ("The total is $1,234.50.", Fraction("1234.5")),
        ("It grows by 50%.", 50),
        ("from 5-3", 3),
        ("x = -3", -3),
        ("minus \u22127 degrees", -7),
        ("one half is 1/2", Fraction(1, 2)),
        ("about .25 of it", Fraction(1, 4)),
        ("2.50e3 in all", 2500),
        ("1,000,000 people.", 1_000_000),
        ("in 1, 2 and 3.", 3),
        ("an area of 12 m\u00b2", 12),
        ("it costs USD50", 50),
        ("no number", None),
        ("", None),
        ("divided 1/0", None),
        ("1e999999999", None),
        ("The loss is -$1,234.50.", Fraction("-1234.5")),
        ("it is $-5", -5),
        ("about \u20135 degrees on pages 1\u2013\u2009", 1),
        ("costs USD1,000", 1000),
        ("costs Rs.1,00,000 only", 100_000),
        ("1\u202f000\u202f000 or 1\u2019000\u2019000", 1_000_000),
        (r"10{,}000 = 10,\!000", 10_000),
        ("1 1/2 cups", Fraction(3, 2)),
        ("-2\u00bd", Fraction(-5, 2)),
        ("-5 100", 100),
        ("7 7/2", Fraction(7, 2)),
        (r"$\frac{3}{4}$ cups", Fraction(3, 4)),
        (r"5\text{ cm}^{2}", 5),
        ("5 cm^2 or 5 cm2", 5),
        ("5 = x_{12}", 5),
        (r"3 \times 10^4", 30_000),
        ("2\u00b9\u2070", 1024),
        ("with CO\u2082 5 times as much CO\u2082", 5),
        ("The total is 12 000.", 12_000),
        ("15 000.50 or 1 234 000", 1_234_000),
        ("rooms 1 100 and 5 0001", 1),
        ("2024 000", 0),
        ("that is 101_2", 101),
    ],
)
def test_the_last_number(text: str, value: Any) -> None:
    assert answer_of(text, Answer("last_number", "number")) == value


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{12}", "12"),
        (r"\boxed{1} or rather $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{a_{n_{1}}}", "a_{n_{1}}"),
        (r"\fbox{no} \boxed 7", "7"),
        (r"\boxed{never ends", None),
        (r"\boxed{1} or \boxed{never ends", "1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox{3}", "3"),
        ("12", None),
    ],
)
def test_what_is_boxed(text: str, found: str | None) -> None:
    assert boxed(text) == found


def test_boxed_numbers_are_equal_by_value() -> None:
    as_number, as_text = Answer("boxed", "number"), Answer("boxed", "text")
    same = [r"\boxed{\frac{1}{2}}", r"\boxed{0.5}", r"\boxed{\dfrac12}", r"$\boxed{ 1/2 }$"]
    assert {answer_of(text, as_number) for text in same} == {Fraction(1, 2)}
    assert answer_of(r"\boxed{\dfrac{1}{2}}", as_text) == answer_of(r"\boxed{ \frac{1}{2} }", as_text)
    assert answer_of(r"\boxed{\text{East}}", as_text) == answer_of(r"\boxed{east.}", as_text) == "east"
    assert answer_of(r"\boxed{east}", as_number) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. a dog", "B"),
        ("(c) because", "C"),
        ("The answer is (D).", "D"),
        ("A dog is no cat. The answer is: B", "B"),
        ("Answer: **E**", "E"),
        ("First (A) seems right, but (B) is.", "B"),
        ("I think it is C.", "C"),
        ("answer: c", "C"),
        ("b)", "B"),
        ("a dog", None),
        ("The answer is a dog", None),
        ("A dog barks.", None),
        ("nothing", None),
        ("The answer is C. Option A is wrong because it rains.", "C"),
        ("Answer: I think it is B", "B"),
        ("Answer: A because it rains", "A"),
        ("The answer is A dog", None),
        ("Answer: b\nIt rains.", "B"),
        ("The answer must be option **b**", "B"),
        (r"So \boxed{\textbf{(C) } 12} it is", "C"),
        (r"The answer is $\mathbf{(B)}$ indeed", "B"),
        ("B is correct.", "B"),
        ("So:\nB is the answer.", "B"),
        ("B because it is blue.", "B"),
        ("C, since 3 > 2", "C"),
        ("B - Paris", "B"),
        ("**A**: Paris\n**B**: Rome", None),
        ("**B**: Paris", "B"),
        ("**B**. Paris is it", "B"),
        ("答案是B\uff0c因为它是蓝的", "B"),
        ("我选B", "B"),
        ("答えはBです", "B"),
        ("정답은 B입니다", "B"),
        ("The answer is \uff22", "B"),
        (r"The answer is \(B\) since", "B"),
        ("A is for apple", None),
        ("A* is the best algorithm", None),
        ("A - 3 = 5 holds", None),
        ("I - as others - think so", None),
        ("A - Paris\nB - Rome", None),
        ("答案不是A因为", None),
        ("选项A是错的", None),
        ("维生素C很重要", None),
        ("B because of (C) here", "C"),
    ],
)
def test_the_letter_of_a_choice(text: str, letter: str | None) -> None:
    assert choice(text) == letter


def test_numbers_are_read_from_whole_answers() -> None:
    values = {
        "1 1/2": Fraction(3, 2),
        "1 000": 1000,
        "- 5": -5,
        r"1\frac12": Fraction(3, 2),
        r"x = \frac{-1}{2}": Fraction(-1, 2),
        r"5 = x": 5,
        r"2\sqrt{3}": None,
        r"\frac{\pi}{2}": None,
        "1" * 5000 + " 1/2": Fraction(1, 2),
        "1,234.50": Fraction("1234.5"),
        "12,34,567": 1_234_567,
        r"10,\!000": 10_000,
        "$ 1/1,000.": Fraction(1, 1000),
        "2 1/2": Fraction(5, 2),
        ".5 %": Fraction(1, 2),
        "\u00bd": Fraction(1, 2),
        "12_{5}": 12,
        "34_{5}": 34,
        "12\u2085": 12,
        "2516_8": 2516,
        "2516_{8}": 2516,
        "1_000": 1000,
        "2_{10} + 1 = 11_{2}": 11,
    }
    assert {text: number(text) for text in values} == values


def test_commas_that_divide_no_thousands_glue_no_numbers() -> None:
    values = {
        "3, 4": 4,
        "1,2": 2,
        "2,5": 5,
        "5, 3, 7": 7,
        "3, 400": 400,
        "3 ,400": 400,
        "$3, $400": 400,
        "3%,400%": 400,
        "x = 1,2345": 2345,
        "1/1e999999999": 999_999_999,
    }
    assert {text: number(text) for text in values} == values


def test_texts_are_equal_where_they_mean_the_same() -> None:
    for one, other in (
        (r"\frac12", r"\tfrac{1}{2}"),
        ("x^{2}", "x\u00b2"),
        ("(1, 2)", "(1,2)"),
        ("x = 3", "$x=3$"),
        (r"\$5", "$5"),
        (r"90^\circ", "90\u00b0"),
        ("Yes!", "yes"),
    ):
        assert plain(one) == plain(other)
    for one, other in ((".5", "5"), ("5!", "5"), ("x\u00b2", "x2"), ("2\u00bd", "21/2"), ("New York", "NewYork")):
        assert plain(one) != plain(other)


def test_a_pattern_of_ones_own() -> None:
    strict = Answer(r"#### (-?[0-9.,]+)", "number")
    assert answer_of("#### 1\n#### 1,200.", strict) == 1200
    assert answer_of("1200", strict) is None
    assert answer_of("Label:  Not Sure ", Answer(r"(?i)label: *(.+)", "text")) == "not sure"
    assert answer_of("one\ntwo", Answer(".*", "text")) == "two"
    assert answer_of("yes or NO", Answer(r"(?i)yes|no", "text")) == "no"


def examples(*references: str) -> list[Example]:
    return [Example(f"test-{n}", (), f"source {n}", (text,)) for n, text in enumerate(references)]


def test_accuracy_stands_beside_the_scores_of_texts() -> None:
    scoring = Scoring(metrics=("accuracy", "bleu"), answer=Answer("last_number", "number"))
    system = score_examples(examples("It is 12.", "It is 1,000.", "It is 5."), ["12.0", "so 1000", "it is"], scoring)
    scores = system.scores()
    assert scores.values["accuracy"] == pytest.approx(200 / 3)
    assert [system.source_scores(place)["accuracy"] for place in range(3)] == [100.0, 100.0, 0.0]
    assert scores.higher_is_better["accuracy"] is True
    assert "bleu" in scores.values
    assert stored_scoring(scores) == scoring
    assert "accuracy" not in score_examples(examples("12"), ["12"], Scoring()).scores().values


def test_an_accuracy_that_the_most_common_answer_has_too_is_told() -> None:
    scoring = Scoring(metrics=("accuracy",), answer=Answer("last_number", "number"))
    references = [f"It is {number}." for number in (7, 7, 7, 1, 2)]

    def told(*predictions: str) -> list[str]:
        remarks = score_examples(examples(*references), predictions, scoring).scores().remarks
        return [one for one in remarks if "exact binomial" in one]

    assert told("It is 7.0.", "It is 7.", "It is 1.", "It is 1.", "It is 3.") == [
        "An accuracy of 60.0 on 5 sources is not shown to be above 60.0, that of always choosing 7 (exact binomial "
        "test, p = 0.683)."
    ]
    references = [f"It is {number}." for number in (7, 7, *range(8, 16))]
    assert told(*references) == []
    references = ["It is 1.", "It is 2."]
    assert told("It is 3.", "It is 4.") == [], "no answer is more common than others"


def resolved(path: Path, **answer: str) -> Any:
    spec = RegistryResolver().task("jsonl", {"path": str(path), "answer": answer})
    return make_task(spec)


def test_the_setting_gives_the_score_first(tiny_task: Path) -> None:
    assert resolved(tiny_task, pattern="last_number").scoring.metrics[0] == "accuracy"
    assert resolved(tiny_task, pattern="last_number").scoring.answer == Answer("last_number", "number")
    assert resolved(tiny_task, pattern="in ([A-Z]\\w+)").scoring.answer == Answer("in ([A-Z]\\w+)", "text")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"pattern": "last_numbr"}, "answer.pattern: there is no pattern 'last_numbr'; did you mean 'last_number'"),
        ({"pattern": "("}, "'\\(' is no regular expression"),
        ({"pattern": "(a)(b)"}, "has 2 groups; leave one"),
        ({"pattern": "boxed", "normalise": "numbers"}, "answer.normalise: Input should be 'number' or 'text'"),
        ({}, "answer.pattern"),
    ],
)
def test_a_wrong_setting_is_one_error(answer: dict[str, str], message: str, tiny_task: Path) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(tiny_task, **answer)


def test_references_without_an_answer_are_told_before_a_sweep(tiny_task: Path) -> None:
    homes = resolved(tiny_task, pattern="in ([A-Z]\\w+)")
    assert answers_missing(homes, {"test": homes.load("test")}) == []
    check_metrics(homes, homes.load("dev"))
    numbers = resolved(tiny_task, pattern="last_number")
    with pytest.raises(MetricError, match=r"6 of 6 sources of test have no reference with an answer .*'last_number'"):
        answers_missing(numbers, {"test": numbers.load("test")})
    (warning,) = answers_missing(numbers, {"dev": examples("1", "2", "none")})
    assert warning.startswith("1 of 3 sources of dev have no reference with an answer by the pattern 'last_number'")


def test_ids_are_what_they_were_without_the_setting() -> None:
    spec = trial()
    unset = varied(spec, task={"config": {"answer": None}})
    assert unset.trial_id == spec.trial_id
    assert varied(spec, task={"config": {"answer": {"pattern": "boxed"}}}).trial_id != spec.trial_id


def test_one_seed_of_right_and_wrong_is_tested_exactly() -> None:
    first, second = np.zeros(20), np.zeros(20)
    first[:9], second[9:10] = 100.0, 100.0  # nine gained, one lost
    pair = with_values(first.tolist())[None], with_values(second.tolist())[None]
    assert exact_paired_p_value(*pair) == pytest.approx(2 * (1 + 10) / 2**10)
    assert exact_paired_p_value(pair[0], pair[0]) == 1.0
    assert exact_paired_p_value(np.repeat(pair[0], 2, 0), np.repeat(pair[1], 2, 0)) is None, "several seeds"
    assert exact_paired_p_value(with_values([0.0, 50.0, 100.0])[None], with_values([0.0] * 3)[None]) is None
