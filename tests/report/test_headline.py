"""The first sentence of a report where several have the same score."""

from __future__ import annotations

from fakes import completed, record, trial

from bench.report.configurations import comparisons
from bench.report.headline import headline


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
