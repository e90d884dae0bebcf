"""The part of a report that says how settings were chosen: what was tried, at what budget, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report.columns import ABSENT
from bench.spec import JsonDict
from bench.tuning_summary import Tuning

HEADING = ("method", "trials", "failed", "device s", "range extended", "chosen", "dev")


def settings_text(settings: JsonDict) -> str:
    """``learning_rate=0.001``: settings without the part of the sweep file that they stand in."""
    return ", ".join(f"{key.partition('.')[2]}={value}" for key, value in settings.items())


def metric_title(tuning: Tuning) -> str:
    """What settings were chosen by."""
    return "dev loss" if tuning.metric == "dev_loss" else f"dev {tuning.metric}"


def budget_rows(tunings: Sequence[Tuning]) -> list[list[str]]:
    """A row for each search, under :data:`HEADING`."""
    return [
        [
            tuning.name,
            f"{tuning.trials_used:.3g}",
            str(tuning.failed),
            f"{tuning.device_seconds_used:.0f}",
            str(tuning.extensions),
            ABSENT if (chosen := tuning.chosen) is None else settings_text(chosen.settings),
            ABSENT if chosen is None else _value(chosen.value),
        ]
        for tuning in tunings
    ]


def expected_rows(tunings: Sequence[Tuning]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows of what the best of 1, 2, ... trials is expected to reach."""
    most = max((len(tuning.expected_best) for tuning in tunings), default=0)
    body = [
        [
            tuning.name,
            *(_value(point.value) for point in tuning.expected_best),
            *[ABSENT] * (most - len(tuning.expected_best)),
        ]
        for tuning in tunings
        if tuning.expected_best
    ]
    return ["best of", *(str(trials) for trials in range(1, most + 1))], body


def curve_lines(tunings: Sequence[Tuning]) -> list[str]:
    """The learning-rate curve of each search in words."""
    return [
        f"{tuning.name}: " + ", ".join(f"{rate:g} → {_value(value)}" for rate, value in tuning.learning_rate_curve)
        for tuning in tunings
        if tuning.learning_rate_curve
    ]


def audit_lines(tunings: Sequence[Tuning]) -> list[str]:
    """What halving would have missed, for the searches that cut trials."""
    return [
        f"{tuning.name}: {audit.audited} of the trials that were cut ran to the end; their best reached "
        f"{_value(audit.best_audited)}, the best of those kept {_value(audit.best_kept)}: regret {_value(audit.regret)}"
        for tuning in tunings
        if (audit := tuning.audit) is not None
    ]


def tuning_document(tuning: Tuning) -> JsonDict:
    """A search as report.json has it, unrounded."""
    chosen = tuning.chosen
    return {
        "name": tuning.name,
        "metric": tuning.metric,
        "higher_is_better": tuning.higher_is_better,
        "search": tuning.search.model_dump(mode="json", include={"space", "tune", "rungs", "steps"}),
        "trials_used": tuning.trials_used,
        "device_seconds_used": tuning.device_seconds_used,
        "failed": tuning.failed,
        "range_extensions": tuning.extensions,
        "chosen": None if chosen is None else {"settings": chosen.settings, "value": chosen.value},
        "tried": [vars(one) for one in tuning.tried],
        "expected_best": [vars(point) for point in tuning.expected_best],
        "audit": None if tuning.audit is None else vars(tuning.audit),
    }


def _value(value: float | None) -> str:
    return "failed" if value is None else f"{value:.3f}"
