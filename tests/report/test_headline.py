"""The first sentence of a report where several have the same score."""

from __future__ import annotations

import pytest
from fakes import completed, record, trial

from bench.report.answer import answer
from bench.report.configurations import comparisons
from bench.report.efficiency import efficiencies
from bench.report.headline import headline
from bench.report.terminal import headline as of_trial


def said(**scores: float) -> str | None:
    (comparison,) = comparisons([record(trial(name), completed(score)) for name, score in scores.items()])
    return headline(comparison, None)


def test_equal_means_are_named_together() -> None:
    assert said(full=50.0, lora=40.0) == (
        "BLEU: the best mean is that of full (50.0), which does not say that it leads: differences are not tested "
        "without predictions. Next: lora (40.0)."
    )
    assert said(full=50.0, ia3=40.0, lora=50.0) == (
        "BLEU: full and lora have the same best mean (50.0), which does not say that they are equal: differences are "
        "not tested without predictions. Next: ia3 (40.0)."
    )
    many = said(full=5.0, lora=5.0, ia3=5.0, bitfit=5.0, mam=5.0, adapters=5.0, prompt_tuning=5.0)
    assert many is not None and " and 1 more have the same best mean (5.00)" in many and "Next: " not in many


def test_nobody_leads_in_a_score_without_a_direction() -> None:
    found = []
    for name, ratio in (("full", 1.2), ("lora", 0.9)):
        outcome = completed()
        scores = outcome.scores.model_copy(update={"values": {"length_ratio": ratio}, "higher_is_better": {}})
        found.append(record(trial(name), outcome.model_copy(update={"scores": scores})))
    (comparison,) = comparisons(found)
    assert headline(comparison, None) == (
        "length ratio: lora (0.90), full (1.20). Neither end of this score is the better one, so that nobody leads."
    )
    assert answer(comparison, None) == []
    assert [row.gain for row in efficiencies(comparison)] == [None, None]


@pytest.mark.parametrize(
    ("value", "text"), [("bleu", "BLEU 61.3"), ("nist", "NIST 8.54"), ("share", "share 0.071")], ids=str
)
def test_a_line_about_a_trial_is_as_precise_as_the_tables(value: str, text: str) -> None:
    number = {"bleu": 61.3, "nist": 8.544, "share": 0.0712}[value]
    outcome = completed()
    scores = outcome.scores.model_copy(update={"values": {value: number}})
    assert of_trial(outcome.model_copy(update={"scores": scores})) == text
