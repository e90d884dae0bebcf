"""The part of a report about searches: which settings were tried, at what budget, and with what result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bench.report.column import ABSENT
from bench.report.one_kind import kind_name
from bench.schema.search_space import Choices, Range, SearchSpace
from bench.schema.trial import JsonDict
from bench.tuning.summary import Tuning

HEADING = ("method", "searched", "trained", "full lengths", "failed", "device s", "range extended", "chosen", "dev")
# Ranges of the same setting whose widths differ by more than this factor are worth a caveat.
UNEQUAL_WIDTHS = 1.25


def settings_text(settings: JsonDict) -> str:
    """Settings as ``learning_rate=0.001``, without the name of their part of the sweep file."""
    return ", ".join(f"{key.partition('.')[2]}={value}" for key, value in settings.items())


def space_text(space: SearchSpace) -> str:
    """The space of a search: ``learning_rate 1e-05 to 0.001 (2 decades), init text or random``."""
    return ", ".join(f"{key.partition('.')[2]} {_dimension_text(dimension)}" for key, dimension in space.items())


def _dimension_text(dimension: Range | Choices) -> str:
    if isinstance(dimension, Choices):
        return " or ".join(map(str, dimension.values))
    decades = f" ({_width(dimension):.2g} decades)" if dimension.log else ""
    return f"{dimension.low:g} to {dimension.high:g}{decades}"


def _width(dimension: Range) -> float:
    """The width of a range: in decades if it is logarithmic, else the distance of its ends."""
    return math.log10(dimension.high / dimension.low) if dimension.log else dimension.high - dimension.low


def tuning_caveats(tunings: Sequence[Tuning]) -> list[str]:
    """Caveats of equal budgets: ranges of unequal width, and unequal numbers of settings."""
    ranges: dict[tuple[str, bool], dict[str, float]] = {}
    for tuning in tunings:
        for key, dimension in tuning.search.space.items():
            if isinstance(dimension, Range):
                ranges.setdefault((key.partition(".")[2], dimension.log), {})[tuning.name] = _width(dimension)
    lines = [
        f"Searches look at ranges of {key} of unequal width{' in decades' * log} ({_each(widths)}): the same budget "
        "finds the best value of a narrower range more closely."
        for (key, log), widths in ranges.items()
        if max(widths.values()) > UNEQUAL_WIDTHS * min(widths.values())
    ]
    settings = {tuning.name: float(len(tuning.search.space)) for tuning in tunings}
    if len(set(settings.values())) > 1:
        lines.append(
            f"Searches vary different numbers of settings ({_each(settings)}): the same budget is thinner over more."
        )
    kinds = {kind_name(one.devices) for tuning in tunings for one in tuning.trained_trials if one.devices}
    if len(kinds) > 1:
        lines.append(
            f"Trials of searches ran on different devices ({'; '.join(sorted(kinds))}): equal device-seconds are no "
            "equal budgets. resources.accelerator names one type of GPU."
        )
    return lines


def _each(values: Mapping[str, float]) -> str:
    """Names by value: ``full, lora 2; ia3 0.3``."""
    by_value: dict[str, list[str]] = {}
    for name, value in sorted(values.items(), key=lambda pair: -pair[1]):
        by_value.setdefault(f"{value:.2g}", []).append(name)
    return "; ".join(f"{', '.join(names)} {value}" for value, names in by_value.items())


def metric_title(tuning: Tuning) -> str:
    """The metric that settings were chosen by."""
    return "dev loss" if tuning.metric == "dev_loss" else f"dev {tuning.metric}"


def budget_rows(tunings: Sequence[Tuning]) -> list[list[str]]:
    """A row for each search, under :data:`HEADING`."""
    return [
        [
            tuning.name,
            space_text(tuning.search.space),
            str(len(tuning.trained_trials)),
            f"{tuning.trials_used:.3g}",
            str(tuning.failed),
            f"{tuning.device_seconds_used:.0f}",
            str(tuning.extensions),
            ABSENT if (chosen := tuning.chosen_trial) is None else settings_text(chosen.settings),
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
    """What halving has missed, according to its audits, for searches that cut trials."""
    return [
        f"{tuning.name}: {audit.audited} of the trials that were cut ran to the end; their best reached "
        f"{_value(audit.best_audited)}, the best of those kept {_value(audit.best_kept)}: regret {_value(audit.regret)}"
        for tuning in tunings
        if (audit := tuning.audit) is not None
    ]


def tuning_document(tuning: Tuning) -> JsonDict:
    """A search for report.json, unrounded."""
    chosen = tuning.chosen_trial
    return {
        "name": tuning.name,
        "metric": tuning.metric,
        "higher_is_better": tuning.higher_is_better,
        "search": tuning.search.model_dump(mode="json", include={"space", "tune", "rungs", "steps"}),
        "trained": len(tuning.trained_trials),
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
