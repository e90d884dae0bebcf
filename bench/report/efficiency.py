"""What each method gains for its cost, compared with the untouched base model and with full fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.report.column import ABSENT, Column, Shown
from bench.report.columns import MERGED_DECODE, columns_of
from bench.report.configurations import Comparison, Configuration, chosen_of_methods, lowest_dev_loss
from bench.schema.trial import JsonDict

BASE, FULL = "none", "full"
# Settings of the model that are a part of what is compared.
OF_QUANTIZATION = ("quantization", "double_quantization", "quantization_compute", "checkpoint_quantization")

TITLE = "What it gains for what it costs"
NOTE = (
    "Of several configurations of a method, the one with the lowest dev loss. Gain is over the untouched base model, "
    "under the same settings of task, decoding and precision; it is not quantised if the table has such a row; the "
    "share is of the gain of full fine-tuning; decode time is seconds per new token, as a multiple of the base model's "
    "and, where an adapter can be folded into the base weights, merged as a multiple of unmerged."
)

# A row and what the model is asked there.
Asked = tuple[Configuration, JsonDict]


@dataclass(frozen=True)
class Efficiency:
    """A row for the configuration of a method with the lowest dev loss. None: the records do not say."""

    configuration: Configuration
    score: float | None
    gain: float | None  # of the score over the base model's, positive where it is better
    full_gain_fraction: float | None  # of the gain of full fine-tuning
    decode_time_over_base: float | None  # seconds per new token, as a multiple of the base model's
    merged_decode_time_over_unmerged: float | None  # likewise, of the same model before it was merged
    # Of further tasks, by score: the gain over the base model, negative where it has forgotten.
    gains_elsewhere: Mapping[str, float | None] = field(default_factory=dict)


def efficiencies(comparison: Comparison) -> list[Efficiency]:
    """A row for each method, in order of the table; none without a metric."""
    if not comparison.metrics:
        return []
    # A plain prompt is the starting point; pairs in it are a way of their own to gain.
    plain = [one for one in comparison.scored if one.results[0].spec.few_shot is None]
    references = {method: [(one, _asked(one)) for one in plain if one.method == method] for method in (BASE, FULL)}
    return [
        _efficiency(comparison, configuration, references) for configuration in chosen_of_methods(comparison.scored)
    ]


def _efficiency(
    comparison: Comparison, configuration: Configuration, references: Mapping[str, Sequence[Asked]]
) -> Efficiency:
    metric = comparison.metrics[0]
    base, full = (_reference(configuration, references[method]) for method in (BASE, FULL))
    gain = _gain(configuration, base, metric)
    return Efficiency(
        configuration=configuration,
        score=_mean(configuration, metric.name),
        gain=gain,
        full_gain_fraction=_ratio(gain, _gain(full, base, metric)),
        decode_time_over_base=_ratio(
            _mean(base, "decode_tokens_per_second"), _mean(configuration, "decode_tokens_per_second")
        ),
        merged_decode_time_over_unmerged=_mean(configuration, MERGED_DECODE.name),
        gains_elsewhere={score.name: _gain(configuration, base, score) for score in _scores_elsewhere(comparison)},
    )


def _reference(row: Configuration, known: Sequence[Asked]) -> Configuration | None:
    """The row that a row is compared with: on the base as it is, else on the row's quantised base.

    It has the row's task, decoding and precision. What was trained in the sweep comes before what was loaded, and of
    several the one with the lowest dev loss. None where nothing fits, or where several loaded ones would do.

    Args:
        row: The row.
        known: All rows of the method that it is compared with, and what is asked there.
    """
    spec, asked = row.results[0].spec, _asked(row)
    if spec.few_shot is not None:
        del asked["stop"]  # A prompt with pairs in it may bring its own.

    def rank(one: Configuration) -> tuple[bool, bool]:
        other = one.results[0].spec
        return other.model.stored_in is not None, other.loaded is not None

    fitting = [
        one
        for one, other in known
        if one.results[0].spec.model.stored_in in (None, spec.model.stored_in)
        and all(other[part] == value for part, value in asked.items())
    ]
    nearest = [one for one in fitting if rank(one) == min(map(rank, fitting))]
    if len(nearest) > 1 and nearest[0].results[0].spec.loaded is not None:
        return None
    return lowest_dev_loss(nearest)


def _asked(row: Configuration) -> JsonDict:
    """What the model of a row is asked and how: scores under other settings are not comparable."""
    spec = row.results[0].spec
    identity = spec.identity
    stop = identity["decode"].pop("stop", None)
    return {
        "task": identity["task"],
        "model": {key: value for key, value in identity["model"].items() if key not in OF_QUANTIZATION},
        "decode": identity["decode"],
        "stop": stop,
        "precision": spec.resources.precision,
    }


def _scores_elsewhere(comparison: Comparison) -> list[Column]:
    """The scores on tasks of the sweep's evaluations: ``task/metric``, with a direction."""
    return [score for score in comparison.metrics if "/" in score.name and score.higher_is_better is not None]


def _mean(configuration: Configuration | None, name: str) -> float | None:
    return None if configuration is None else configuration.mean(name)


def _gain(configuration: Configuration | None, base: Configuration | None, metric: Column) -> float | None:
    score, start = _mean(configuration, metric.name), _mean(base, metric.name)
    if score is None or start is None or metric.higher_is_better is None:
        return None
    return score - start if metric.higher_is_better else start - score


def _ratio(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole or whole <= 0 else part / whole


@dataclass(frozen=True)
class EfficiencyColumn:
    """Heading and text of one column of the summary."""

    title: str
    text: Callable[[Efficiency], str | None]


def efficiency_table(comparison: Comparison) -> tuple[list[str], list[list[str]]] | None:
    """Heading and rows, without columns that are empty; None if there is no row."""
    rows = efficiencies(comparison)
    if not rows:
        return None
    columns = [column for column in _columns(comparison) if any(map(column.text, rows))]
    heading = ["method", *(column.title for column in columns)]
    return heading, [[row.configuration.name, *(column.text(row) or ABSENT for column in columns)] for row in rows]


def _columns(comparison: Comparison) -> list[EfficiencyColumn]:
    metric = comparison.metrics[0]

    def of_cell(column: Column) -> Callable[[Efficiency], str | None]:
        def text(row: Efficiency) -> str | None:
            value = _mean(row.configuration, column.name)
            return None if value is None else column.text_with_unit(value)

        return text

    def of_row(value_of: Callable[[Efficiency], float | None], show: str) -> Callable[[Efficiency], str | None]:
        return lambda row: None if (value := value_of(row)) is None else show.format(value)

    def elsewhere(score: str) -> Callable[[Efficiency], float | None]:
        return lambda row: row.gains_elsewhere.get(score)

    return [
        EfficiencyColumn(metric.title, of_row(lambda row: row.score, f"{{:,.{metric.decimals}f}}")),
        EfficiencyColumn("gain over base", of_row(lambda row: row.gain, f"{{:+,.{metric.decimals}f}}")),
        EfficiencyColumn("share of full's gain", of_row(lambda row: row.full_gain_fraction, "{:.0%}")),
        *(
            EfficiencyColumn(f"{score.title} over base", of_row(elsewhere(score.name), f"{{:+,.{score.decimals}f}}"))
            for score in _scores_elsewhere(comparison)
        ),
        *(EfficiencyColumn(one.summary_title or one.title, of_cell(one)) for one in columns_of(Shown.SUMMARY)),
        EfficiencyColumn("decode time, x base", of_row(lambda row: row.decode_time_over_base, "{:.2f}")),
        EfficiencyColumn(MERGED_DECODE.title, of_row(lambda row: row.merged_decode_time_over_unmerged, "{:.2f}")),
    ]


def efficiency_document(rows: Iterable[Efficiency]) -> list[JsonDict]:
    """The rows for report.json, unrounded. A reader finds further values of a configuration there by its name."""
    return [
        {
            "cell": row.configuration.name,
            **{key: value for key, value in vars(row).items() if key != "configuration" and value != {}},
        }
        for row in rows
    ]
