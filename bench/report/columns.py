"""The columns of all tables. A new one is one entry of :data:`COLUMNS`, which says all that tables have to know of it.

results.csv, the tables of every format, the page, pictures, ``tuneoff compare`` and trackers read this list, and show
nothing of a record that is not in it. Columns of scores and of phases are made from the records, which name them.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from functools import cache

from bench.report.column import Column, Group, Shown
from bench.report.readers import (
    completed_reader,
    energy_of_training,
    failed_reader,
    learning_rate,
    merged_reader,
    origin_reader,
    peak_of_all,
    peak_of_training,
    peak_over_baseline,
    phase_reader,
    plan_reader,
    ran_reader,
    rate_of_decoding,
    score_reader,
    training_reader,
)
from bench.schema.record import Completed, Failed, Ran, TrialResult

# How papers write these metrics; a metric that is not here is printed under its own name.
METRIC_TITLES = {
    "bleu": "BLEU",
    "nist": "NIST",
    "meteor": "METEOR",
    "ter": "TER",
    "chrf": "chrF++",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "bertscore": "BERTScore",
    "bleurt": "BLEURT",
    "mauve": "MAUVE",
    "macro_f1": "macro-F1",
    "matthews": "Matthews",
}

CSV, TABLES, TRIALS, RATIOS = Shown.CSV, Shown.CONFIGURATIONS, Shown.TRIALS, Shown.RATIOS
LESS, MORE = False, True  # is better

TRAINED = Column(
    *("trained_parameters", "trained", LESS),
    axis="trained parameters",
    varies_over_seeds=False,
    read=ran_reader(lambda outcome: outcome.parameters.trained),
    group=Group.SIZE,
    shown=Shown.EVERYWHERE & ~TRIALS,
    unit="count",
    picture="trained",
    tracker="parameters/trained",
)
LABEL = Column(
    *("label", "settings"),
    read=lambda record: record.spec.label,
    group=Group.NAME,
    shown=CSV | TRIALS,
    is_text=True,
)
# Rates span too many powers of ten for one number of decimals.
LEARNING_RATE = Column(
    *("learning_rate", "learning rate", None, None), read=learning_rate, group=Group.SETTING, shown=CSV | TRIALS
)
MERGED_DECODE = Column(
    *("merged_decode_time_over_unmerged", "decode time merged, x unmerged"),
    decimals=2,
    read=merged_reader(lambda merged: merged.time_ratio),
    measured_alone=True,
)

# In the order of results.csv, where scores follow the first columns, which name the trial and its outcome.
COLUMNS: tuple[Column, ...] = (
    Column("trial_id", "trial", read=lambda r: r.trial_id, group=Group.NAME, shown=CSV | TRIALS, is_text=True),
    Column("method", "method", read=lambda r: r.spec.method.name, group=Group.NAME, shown=CSV | TRIALS, is_text=True),
    Column("model", read=lambda r: r.spec.model.path, group=Group.NAME, is_text=True),
    Column("task", read=lambda r: r.spec.task.name, group=Group.NAME, is_text=True),
    Column("seed", "seed", read=lambda r: r.spec.seed, group=Group.NAME, shown=CSV | TRIALS),
    Column("status", read=lambda r: r.outcome.status, group=Group.OUTCOME, is_text=True),
    Column("reason", read=failed_reader(lambda outcome: outcome.reason), group=Group.OUTCOME, is_text=True),
    TRAINED,
    Column(
        *("stored_parameters", "stored"),
        read=ran_reader(lambda outcome: outcome.parameters.stored),
        group=Group.SIZE,
        shown=CSV | Shown.SUMMARY,
        unit="count",
        tracker="parameters/stored",
    ),
    Column("total_parameters", read=ran_reader(lambda outcome: outcome.parameters.total), group=Group.SIZE),
    Column("trained_fraction", read=ran_reader(lambda outcome: outcome.parameters.trained_fraction), group=Group.SIZE),
    Column(
        *("trained_percent", "trained %", LESS, 3),
        axis="trained, % of all parameters",
        varies_over_seeds=False,
        read=ran_reader(lambda outcome: 100 * outcome.parameters.trained_fraction),
        group=Group.SIZE,
        shown=TABLES,
    ),
    Column(
        *("peak_memory_bytes", "peak MiB", LESS),
        scale=2**-20,
        axis="peak memory, MiB",
        read=ran_reader(peak_of_training),
        group=Group.COST,
        shown=Shown.EVERYWHERE,
        measured_alone=True,
        unit="bytes",
        summary_title="peak memory",
        sentence_part="peak memory {} MiB",
        picture="memory",
    ),
    Column(
        *("train_tokens_per_second", "train tok/s", MORE),
        axis="useful tokens per second of training",
        read=training_reader(lambda train: train.tokens_per_second),
        group=Group.COST,
        shown=Shown.EVERYWHERE,
        measured_alone=True,
        terminal_title="tok/s",
        sentence_part="{} tokens/s in training",
        tracker="cost/train_tokens_per_second",
    ),
    Column(
        *("decode_tokens_per_second", "decode tok/s", MORE),
        axis="new tokens per second of decoding",
        read=rate_of_decoding,
        group=Group.COST,
        shown=CSV | TABLES | Shown.KEY | RATIOS,
        measured_alone=True,
    ),
    Column(
        *("train_seconds", "train s", LESS, 1),
        axis="training time, seconds",
        read=phase_reader("train", "seconds"),
        group=Group.COST,
        shown=CSV | TABLES | TRIALS | Shown.SUMMARY | RATIOS,
        picture="train",
    ),
    Column(
        *("total_seconds", "total s", None, 1),
        axis="seconds from launch to end",
        read=lambda r: r.total_seconds if isinstance(r.outcome, Ran) else None,
        group=Group.WHOLE_COST,
        shown=CSV | TABLES | TRIALS,
        tracker="cost/total_seconds",
    ),
    LABEL,
    LEARNING_RATE,
    Column("steps", read=training_reader(lambda train: train.steps), group=Group.SETTING),
    Column("best_step", read=ran_reader(lambda outcome: outcome.best_step), group=Group.LOSS),
    Column(
        *("dev_loss", "dev loss", LESS, 3),
        read=ran_reader(lambda outcome: outcome.dev_loss),
        group=Group.LOSS,
        shown=CSV | TRIALS,
        tracker="best_dev_loss",
    ),
    Column(
        *("test_loss", "test loss", LESS, 3),
        axis="test loss, nats per target token",
        read=completed_reader(lambda outcome: outcome.test_loss),
        group=Group.LOSS,
        shown=CSV | TABLES | Shown.KEY | TRIALS,
        tracker="test/loss",
    ),
    Column("memory_over_baseline_bytes", read=ran_reader(peak_over_baseline), group=Group.COST, measured_alone=True),
    Column(
        "decode_peak_memory_bytes",
        read=phase_reader("decode", "peak_memory_bytes"),
        group=Group.COST,
        measured_alone=True,
    ),
    Column("memory_method", read=ran_reader(lambda outcome: outcome.ranks[0].memory_method), is_text=True),
    Column(
        *("adapter_bytes", "adapter"),
        read=ran_reader(lambda outcome: outcome.adapter_bytes),
        group=Group.SIZE,
        shown=CSV | Shown.SUMMARY,
        unit="bytes",
    ),
    Column(
        "step_seconds_mean",
        read=training_reader(lambda train: train.step_seconds_mean),
        group=Group.COST,
        measured_alone=True,
    ),
    Column(
        "step_seconds_p50",
        read=training_reader(lambda train: train.step_seconds_p50),
        group=Group.COST,
        measured_alone=True,
    ),
    Column(
        "step_seconds_p90",
        read=training_reader(lambda train: train.step_seconds_p90),
        group=Group.COST,
        measured_alone=True,
    ),
    Column(
        "step_seconds_p99",
        read=training_reader(lambda train: train.step_seconds_p99),
        group=Group.COST,
        measured_alone=True,
    ),
    Column(
        "useful_token_fraction",
        read=training_reader(lambda train: train.useful_token_fraction),
        group=Group.COST,
        measured_alone=True,
    ),
    Column("ranks", read=lambda r: r.spec.resources.ranks, group=Group.SETTING),
    Column("zero_stage", read=lambda r: r.spec.resources.zero_stage, group=Group.SETTING),
    Column("precision", read=lambda r: r.spec.resources.precision, group=Group.SETTING, is_text=True),
    Column("device", read=lambda r: " and ".join(r.devices) or None, is_text=True),
    Column("launcher", read=lambda r: r.launcher, is_text=True),
    Column("message", read=failed_reader(lambda outcome: outcome.message), group=Group.OUTCOME, is_text=True),
    Column("phase", read=failed_reader(lambda outcome: outcome.phase), group=Group.OUTCOME, is_text=True),
    Column("attempt", read=lambda r: r.attempt.number),
    Column("started_at", read=lambda r: r.started_at, is_text=True),
    Column("batch_size", read=lambda r: r.spec.train.batch_size, group=Group.SETTING),
    Column(
        "config", read=lambda r: json.dumps(r.spec.method.config, sort_keys=True), group=Group.SETTING, is_text=True
    ),
    Column("train_pairs", read=ran_reader(lambda outcome: outcome.data.get("train_pairs")), group=Group.SETTING),
    Column("test_sources", read=completed_reader(lambda outcome: outcome.decode.sources), group=Group.SETTING),
    Column("code_sha256", read=origin_reader("code_sha256"), is_text=True),
    Column("git_revision", read=origin_reader("git_revision"), is_text=True),
    Column("git_dirty", read=origin_reader("git_dirty")),
    Column("cpu_cores", read=origin_reader("cpu_cores")),
    Column("threads_per_rank", read=origin_reader("threads_per_rank")),
    Column("load_average_1min", read=origin_reader("load_average_1min")),
    Column("stage", read=lambda r: r.spec.stage, group=Group.SETTING, is_text=True),
    Column("stop_after_steps", read=lambda r: r.spec.stop_after_steps, group=Group.SETTING),
    Column(
        "failed_after_seconds",
        read=lambda r: r.total_seconds if isinstance(r.outcome, Failed) else None,
        group=Group.WHOLE_COST,
    ),
    Column("planned_flops", read=plan_reader(lambda plan: plan.flops)),
    Column(
        "planned_memory_bytes",
        read=plan_reader(lambda plan: plan.peak_memory_bytes),
        group=Group.COST,
        measured_alone=True,
    ),
    Column(
        "planned_step_seconds", read=plan_reader(lambda plan: plan.step_seconds), group=Group.COST, measured_alone=True
    ),
    Column("planned_total_seconds", read=plan_reader(lambda plan: plan.total_seconds), group=Group.WHOLE_COST),
    Column(
        *("energy_joules", "energy Wh", LESS, 2),
        scale=1 / 3600,
        axis="energy of training, watt-hours",
        read=ran_reader(energy_of_training),
        group=Group.COST,
        shown=CSV | TABLES | Shown.SUMMARY | RATIOS,
        picture="energy",
    ),
    MERGED_DECODE,
    Column("coverage", read=ran_reader(lambda outcome: outcome.parameters.coverage_text), is_text=True),
    # In no file by trial, since others have it.
    Column(
        *("outcome", "status"),
        read=lambda r: r.outcome.reason if isinstance(r.outcome, Failed) else r.outcome.status,
        group=Group.OUTCOME,
        shown=TRIALS,
        is_text=True,
    ),
    Column(
        "largest_memory_bytes",
        read=ran_reader(peak_of_all),
        group=Group.COST,
        shown=Shown.NOWHERE,
        tracker="cost/peak_memory_bytes",
    ),
)


def columns_of(table: Shown) -> tuple[Column, ...]:
    """The columns of a table but for scores, in its order."""
    return tuple(sorted((column for column in COLUMNS if column.shown & table), key=lambda column: column.group))


def column_named(name: str) -> Column:
    """The column of this name.

    Raises:
        KeyError: The list has none.
    """
    for column in COLUMNS:
        if column.name == name:
            return column
    raise KeyError(name)


def column_or_score(name: str) -> Column:
    """The column of this name, or that of the score which records call so."""
    try:
        return column_named(name)
    except KeyError:
        return _score(name)


def columns_with_scores(record: TrialResult) -> tuple[Column, ...]:
    """All that one record may have a value of. Listed columns come last: their names mean what the list says."""
    return (*metric_columns([record]), *phase_columns([record]), *COLUMNS)


def tracked_columns(record: TrialResult) -> dict[str, Column]:
    """What trackers are told of a record, by the name that they call it."""
    of_scores = {f"test/{column.name}": column for column in metric_columns([record])}
    return of_scores | {column.tracker: column for column in COLUMNS if column.tracker}


def csv_columns(records: Iterable[TrialResult]) -> tuple[Column, ...]:
    """The columns of results.csv, in order: those of the list with scores among them, then those of phases."""
    records = list(records)
    listed = [column for column in COLUMNS if column.shown & CSV]
    first = itertools.takewhile(lambda column: column.group in (Group.NAME, Group.OUTCOME), listed)
    known = {column.name: column for column in listed}
    ordered = [*first, *metric_columns(records), *listed, *phase_columns(records)]
    return tuple({column.name: known.get(column.name, column) for column in ordered}.values())


def metric_columns(records: Iterable[TrialResult]) -> tuple[Column, ...]:
    """The metrics that the records have, in the order in which they name them: official ones first."""
    found: dict[str, tuple[str, bool | None]] = {}
    largest: dict[str, float] = {}
    for record in records:
        if isinstance(record.outcome, Completed):
            scores = record.outcome.scores
            for name, value in scores.values.items():
                if name not in found:
                    found[name] = (title(name, scores.signatures.get(name, "")), scores.higher_is_better.get(name))
                if math.isfinite(value):
                    largest[name] = max(abs(value), largest.get(name, 0.0))
    return tuple(
        _score(name, heading, better, _decimals(largest.get(name, 0.0))) for name, (heading, better) in found.items()
    )


def phase_columns(records: Iterable[TrialResult]) -> tuple[Column, ...]:
    """Seconds of the slowest and peak of the largest rank, for each phase that the records name."""
    phases = {
        phase: None for record in records if isinstance(record.outcome, Ran) for phase in record.outcome.ranks[0].phases
    }
    return tuple(itertools.chain.from_iterable(map(_of_phase, phases)))


@cache
def _of_phase(phase: str) -> tuple[Column, ...]:
    return (
        Column(f"{phase}_seconds", read=phase_reader(phase, "seconds"), group=Group.COST),
        Column(f"{phase}_peak_memory_bytes", read=phase_reader(phase, "peak_memory_bytes"), group=Group.COST),
    )


def present(columns: Iterable[Column], records: Iterable[TrialResult]) -> tuple[Column, ...]:
    """The columns for which some record has a value."""
    records = list(records)
    return tuple(column for column in columns if any(column.of(record) is not None for record in records))


def title(metric: str, signature: str = "") -> str:
    """A metric's name as papers write it; chrF++ without its words is chrF."""
    if metric == "chrf" and "nw:0" in signature.split("|"):
        return "chrF"
    # Of a score on another task, ``task/metric``, the name stays, so that people find the task again.
    return METRIC_TITLES.get(metric, metric if "/" in metric else metric.replace("_", " "))


def score_text(metric: str, value: float) -> str:
    """A single score with its name, as precise as tables print it."""
    return f"{title(metric)} {_score(metric, decimals=_decimals(abs(value))).text(value)}"


@cache
def _score(name: str, heading: str = "", better: bool | None = None, decimals: int = 0) -> Column:
    return Column(
        name, heading or title(name), better, decimals, read=score_reader(name), group=Group.LOSS, shown=TABLES
    )


def _decimals(largest: float) -> int:
    """Three significant digits for most of the column: 61.3, 8.54, 0.071."""
    return 1 if largest > 20 else 2 if largest > 1 else 3
