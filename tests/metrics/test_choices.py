"""Scores of labels: values by hand, tests that take them as they are, and what a task says of its choices."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from fakes import trial, varied

from bench.config.resolver import RegistryResolver
from bench.metrics.checks import check_metrics
from bench.metrics.choices import binomial_tail
from bench.metrics.scoring import SystemScores, score_examples, stored_scoring
from bench.models.token_check import check_tokens
from bench.plugins.registry import make_task
from bench.schema.trial import ModelSpec
from bench.task import Choices, Example, Scoring, Task, TaskError
from bench.tasks.splits import content_of, load_split, training_examples

METRICS = ("accuracy", "macro_f1", "matthews")


def scored(given: str, chosen: str, labels: str = "abc") -> SystemScores:
    """Scores of labels of one letter."""
    scoring = Scoring(metrics=METRICS, choices=Choices(tuple(labels), "whole", (("a", 0.5),)))
    examples = [Example(f"{n}", (), f"source {n}", (label,)) for n, label in enumerate(given)]
    return score_examples(examples, list(chosen), scoring)


def test_scores_are_what_scikit_learn_gives() -> None:
    """f1_score(average="macro") and matthews_corrcoef of scikit-learn 1.7 on these labels."""
    values = scored("aabbbc", "abbbca").scores().values
    assert values["accuracy"] == pytest.approx(50.0)
    # a: tp 1 fp 1 fn 1; b: tp 2 fp 1 fn 1; c: tp 0 fp 1 fn 1
    assert values["macro_f1"] == pytest.approx(100 * (1 / 2 + 2 / 3 + 0) / 3)
    # (3 * 6 - (2*2 + 3*3 + 1*1)) / (36 - (4 + 9 + 1))
    assert values["matthews"] == pytest.approx(100 * 4 / 22)
    assert list(values)[:3] == list(METRICS)
    assert values.keys() == set(METRICS), "what texts are scored by is not there"


def test_labels_that_never_occur_do_not_count() -> None:
    values = scored("aab", "aab").scores().values
    assert values == pytest.approx({"accuracy": 100.0, "macro_f1": 100.0, "matthews": 100.0})
    assert scored("aaa", "aaa").scores().values["matthews"] == 0.0
    two = scored("aabb", "aaaa", "ab").scores()
    assert two.values == pytest.approx({"accuracy": 50.0, "macro_f1": 100 * (4 / 6) / 2, "matthews": 0.0})


def test_scores_of_parts_and_of_single_sources() -> None:
    system = scored("aabbbc", "abbbca")
    assert system.over([0, 2, 3, 4]) == pytest.approx({"accuracy": 75.0, "macro_f1": 100 * (1 + 0.8 + 0) / 3,
                                                       "matthews": 100 * (3 * 4 - 7) / (6 * 10) ** 0.5})  # fmt: skip
    assert system.source_scores(0) == {"accuracy": 100.0, "macro_f1": 100.0, "matthews": 0.0}
    assert system.source_scores(1) == {"accuracy": 0.0, "macro_f1": 0.0, "matthews": 0.0}
    assert stored_scoring(system.scores()) == system.scoring


def test_any_of_several_references_is_right() -> None:
    scoring = Scoring(metrics=METRICS, choices=Choices(("a", "b c"), "token", "none"))
    found = score_examples([Example("0", (), "s", ("a", "b c"))], ["b  c"], scoring).scores()
    assert found.values["accuracy"] == 100.0
    assert found.signatures["accuracy"] == "likeliest of 2 labels|token|prior:none|v1"


def test_an_accuracy_that_a_constant_answer_has_too_is_told() -> None:
    assert binomial_tail(8, 10, Fraction(1, 2)) == pytest.approx((45 + 10 + 1) / 1024)
    assert binomial_tail(0, 3, Fraction(1, 3)) == 1.0
    (remark,) = scored("a" * 5 + "b" * 5, "aaaabbaaab").scores().remarks
    assert remark == (
        "An accuracy of 60.0 on 10 sources is not shown to be above 50.0, that of always choosing 'a' (exact binomial "
        "test, p = 0.377)."
    )
    assert scored("a" * 5 + "b" * 5, "a" * 5 + "b" * 5).scores().remarks == []


def task(folder: Path, rows: str, **settings: Any) -> Task:
    (folder / "data.jsonl").write_text(rows)
    names = dict.fromkeys(("train", "dev", "test"), "data.jsonl")
    config = {"path": str(folder), "source": "q", "references": "a", **names, **settings}
    return make_task(RegistryResolver().task("jsonl", config))


def test_choices_of_a_task(tmp_path: Path) -> None:
    rows = '{"q": "one", "a": "no"}\n{"q": "two", "a": " yes "}\n'
    fixed = task(tmp_path, rows, choices=["yes", "no"])
    assert [one.choices for one in load_split(fixed, "train")] == [("yes", "no")] * 2
    assert load_split(fixed, "train")[1].references == ("yes",)
    assert fixed.stop == ()
    assert fixed.scoring.metrics == METRICS
    check_metrics(fixed, load_split(fixed, "dev"))
    ones = task(tmp_path, '{"q": "x", "a": 1}\n{"q": "y", "a": true}\n', choices=[0, 1, True])
    assert [one.references for one in load_split(ones, "train")] == [("1",), ("true",)]


def test_choices_of_a_column(tmp_path: Path) -> None:
    rows = (
        '{"q": "2 + 2", "o": ["3", 4], "a": "4"}\n{"q": "2 + 2", "o": ["4", "5"], "a": "4"}\n'
        '{"q": "2 + 2", "o": ["4", "5"], "a": "4"}\n'
    )
    found = load_split(task(tmp_path, rows, choices="o"), "train")
    assert [one.choices for one in found] == [("3", "4"), ("4", "5")], "other choices are another question"
    assert content_of(found[0]) != content_of(found[1])
    assert [one.choices for one in training_examples(found, None, 0)] == [("3", "4"), ("4", "5"), ("4", "5")]
    for form, answer in (("place", 1), ("letter", "B"), ("letter", "b")):
        rows = f'{{"q": "2 + 2", "o": ["3", "4"], "a": "{answer}"}}\n'
        (one,) = load_split(task(tmp_path, rows, choices={"column": "o", "reference": form}), "dev")
        assert one.references == ("4",)
    assert task(tmp_path, rows, choices="o").scoring.metrics == ("accuracy",)


@pytest.mark.parametrize(
    ("row", "column", "reference"),
    [
        ({"o": {"label": ["A", "B", "C"], "text": ["x", "y", "z"]}, "a": "C"}, "o", "letter"),
        ({"o": {"label": ["1", "2", "3"], "text": ["x", "y", "z"]}, "a": "3"}, "o", "letter"),
        ({"o": {"C": "z", "A": "x", "B": "y"}, "a": "(C)"}, "o", "letter"),
        ({"o": ["x", "y", "z", None], "a": 2}, "o", "place"),
        ({"one": "x", "two": "y", "three": "z", "a": "z"}, ["one", "two", "three"], "text"),
    ],
)
def test_choices_as_published_sets_have_them(row: Any, column: Any, reference: str, tmp_path: Path) -> None:
    rows = json.dumps({"q": "which", **row}) + "\n"
    (one,) = load_split(task(tmp_path, rows, choices={"column": column, "reference": reference}), "train")
    assert (one.choices, one.references) == (("x", "y", "z"), ("z",))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choices": ["a"]}, "choices are two or more different texts, got"),
        ({"choices": ["a", "a "]}, "choices are two or more different texts"),
        ({"choices": ["a", "b"], "answer": {"pattern": "choice"}}, "task.answer has no effect with task.choices"),
        ({"choices": ["a", "b"], "tokenize": "zh"}, "task.tokenize has no effect with task.choices"),
        ({"choices": {}}, "say either labels or column"),
        ({"choices": {"labels": ["a", "b"], "prior": {"a": 1}}}, "it has shares of"),
        ({"choices": {"column": "o", "prior": "training"}}, "needs labels that are the same for every source"),
        ({"choices": {"labels": ["a", "b"], "likelihood": "mean"}}, "likelihood"),
    ],
)
def test_a_wrong_setting_is_one_error(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        task(tmp_path, '{"q": "one", "a": "no"}\n', **settings)


def test_data_that_do_not_fit_are_one_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"train split, example 'train-1': the reference 'maybe' is none of"):
        load_split(task(tmp_path, '{"q": "one", "a": "maybe"}\n', choices=["yes", "no"]), "train")
    with pytest.raises(TaskError, match=r"data.jsonl: line 1: 'o' must hold a list of choices, got 'yes'"):
        load_split(task(tmp_path, '{"q": "one", "a": "maybe", "o": "yes"}\n', choices="o"), "train")
    with pytest.raises(TaskError, match=r"'o' must hold a list of choices, got \[\{'key': 'A'"):
        load_split(task(tmp_path, '{"q": "one", "a": "A", "o": [{"key": "A", "value": "x"}]}\n', choices="o"), "train")
    with pytest.raises(TaskError, match=r"the reference '7' is no place of the choices"):
        choices = {"column": "o", "reference": "place"}
        load_split(task(tmp_path, '{"q": "one", "a": "7", "o": ["x", "y"]}\n', choices=choices), "train")
    with pytest.raises(TaskError, match=r"task.choices.column: 'o': the data of Facts have no columns"):
        RegistryResolver().task("facts", {"choices": "o"})


def test_choices_that_a_tokenizer_cannot_tell_apart(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    model = ModelSpec(path=str(tiny_models["gpt2"]))
    fine = task(tmp_path, '{"q": "one", "a": "no"}\n', choices=["yes", "no"])
    assert {one.outcome for one in check_tokens(model, fine, {"dev": load_split(fine, "dev")})} == {"pass"}


def test_ids_are_what_they_were_without_the_setting() -> None:
    spec = trial()
    unset = {"choices": None, "system_prompt": None, "system_in": "system", "chat_options": {}}
    assert varied(spec, task={"config": unset}).trial_id == spec.trial_id
    labels = {"labels": ["a", "b"], "column": None, "likelihood": "whole", "prior": "none", "reference": "text"}
    assert varied(spec, task={"config": {"choices": labels}}).trial_id != spec.trial_id
