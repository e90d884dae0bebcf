"""Records as flat rows: one per trial, failed ones included. What is absent is missing, never zero."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report.columns import metric_columns
from bench.report.row_labels import row_labels
from bench.schema.record import Completed, Failed, PhaseCost, Probed, Ran, TrialResult
from bench.schema.trial import JsonDict
from bench.store.kept_sweep import divided, read_kept
from bench.store.records import Store

if TYPE_CHECKING:
    import pandas as pd

# The columns of results.csv in their order, but for the metrics, which come from the records and follow "reason", and
# for the seconds and peaks of phases, which come last.
IDENTITY_COLUMNS = ("trial_id", "method", "model", "task", "seed", "status", "reason")
OUTCOME_COLUMNS = (
    *("trained_parameters", "stored_parameters", "total_parameters", "trained_fraction"),
    *("peak_memory_bytes", "train_tokens_per_second", "decode_tokens_per_second", "train_seconds"),
    *("total_seconds", "label", "learning_rate", "steps", "best_step", "dev_loss", "test_loss"),
    *("memory_over_baseline_bytes", "decode_peak_memory_bytes", "memory_method", "adapter_bytes"),
    *("step_seconds_p50", "step_seconds_p90", "step_seconds_p99", "useful_token_fraction"),
    *("ranks", "zero_stage", "precision", "device", "launcher", "message"),
    *("phase", "attempt", "started_at", "batch_size", "config", "train_pairs", "test_sources"),
    *("code_sha256", "git_revision", "git_dirty", "cpu_cores", "threads_per_rank", "load_average_1min"),
    *("stage", "stop_after_steps", "failed_after_seconds"),
    *("planned_flops", "planned_memory_bytes", "planned_step_seconds", "planned_total_seconds", "energy_joules"),
    *("merged_decode_time_over_unmerged", "coverage"),
)


def load(root: Path, everything: bool = False) -> pd.DataFrame:
    """One row per trial that the sweep of a results folder asks for, failed ones included; the columns of results.csv.

    With ``everything`` also what earlier versions of the sweep have left.

    Columns of whole numbers are of pandas' type ``Int64``, in which a missing value is missing.
    """
    kept = read_kept(root)
    asked, others = divided(Store(root).read_all(), None if kept is None else kept.asks)
    return frame(asked, others if everything else ())


def frame(results: Sequence[TrialResult], others: Sequence[TrialResult] = ()) -> pd.DataFrame:
    """One row per trial. Absent values are missing, never zero.

    Args:
        results: What the sweep asks for.
        others: Further records; with any, a last column ``asked_for`` says which rows are not of these.
    """
    import pandas as pd  # takes half a second, which other commands need not wait for

    found = [*results, *others]
    called = row_labels(found)
    rows = [{**row(result), "label": called[result.trial_id].text} for result in found]
    names = list(row_columns(found))
    if others:
        names.append("asked_for")
        for number, values in enumerate(rows):
            values["asked_for"] = number < len(results)
    columns = {name: [values.get(name) for values in rows] for name in names}
    return pd.DataFrame({name: pd.Series(values, dtype=_dtype(values)) for name, values in columns.items()})


def _dtype(values: Iterable[object]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "Int64"
    return "float64" if kinds and kinds <= {int, float} else "str"


def row_columns(results: Iterable[TrialResult]) -> tuple[str, ...]:
    """Names of the columns of results.csv, in order."""
    results = list(results)
    phases = {phase: None for result in results for phase in _phases(result)}
    of_phases = [f"{phase}_{what}" for phase in phases for what in ("seconds", "peak_memory_bytes")]
    metrics = (column.name for column in metric_columns(results))
    return tuple(dict.fromkeys([*IDENTITY_COLUMNS, *metrics, *OUTCOME_COLUMNS, *of_phases]))


def row(result: TrialResult) -> JsonDict:
    """A record as a flat row, without the cost of trials that shared a launch or were continued.

    What is not finite is absent; :func:`not_finite` names it.
    """
    values = {name: value for name, value in _row(result).items() if _is_told(value)}
    if result.has_own_costs:
        return values
    return {name: value for name, value in values.items() if not _is_cost(name)}


def not_finite(result: TrialResult) -> list[str]:
    """The values of a record that are NaN or infinite, by their columns."""
    return [name for name, value in _row(result).items() if not _is_told(value)]


def _is_told(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _is_cost(name: str) -> bool:
    kinds = (
        "_joules",
        "_seconds",
        "_memory_bytes",
        "_baseline_bytes",
        "_per_second",
        "_seconds_p50",
        "_seconds_p90",
        "_seconds_p99",
    )
    return name.endswith(kinds) or name == "useful_token_fraction"


def _row(result: TrialResult) -> JsonDict:
    spec, outcome, made = result.spec, result.outcome, result.provenance
    values: JsonDict = {
        "trial_id": result.trial_id,
        "method": spec.method.name,
        "model": spec.model.path,
        "task": spec.task.name,
        "seed": spec.seed,
        "status": outcome.status,
        "label": spec.label,
        "learning_rate": spec.train.learning_rate,
        "batch_size": spec.train.batch_size,
        "config": json.dumps(spec.method.config, sort_keys=True),
        "ranks": spec.resources.ranks,
        "zero_stage": spec.resources.zero_stage,
        "precision": spec.resources.precision,
        "launcher": result.launcher,
        "attempt": result.attempt.number,
        "started_at": result.started_at,
        "stage": spec.stage,
        "stop_after_steps": spec.stop_after_steps,
    }
    if made is not None:
        shown = ("device", "code_sha256", "git_revision", "git_dirty")
        machine = ("cpu_cores", "threads_per_rank", "load_average_1min")
        values |= {name: getattr(made, name) for name in (*shown, *machine)}
    if isinstance(outcome, Failed):
        values["failed_after_seconds"] = result.total_seconds
        return {**values, "reason": outcome.reason, "phase": outcome.phase, "message": outcome.message}
    values["total_seconds"] = result.total_seconds
    if isinstance(outcome, Completed):
        of_test = {"test_loss": outcome.test_loss, "test_sources": outcome.decode.sources}
        return {**values, **outcome.scores.values, **of_test, **_ran(outcome)}
    return {**values, **_ran(outcome)}


def _ran(outcome: Completed | Probed) -> JsonDict:
    values: JsonDict = {
        "trained_parameters": outcome.parameters.trained,
        "stored_parameters": outcome.parameters.stored,
        "total_parameters": outcome.parameters.total,
        "trained_fraction": outcome.parameters.trained_fraction,
        "trained_percent": 100 * outcome.parameters.trained_fraction,
        "coverage": outcome.parameters.coverage_text,
        "decode_tokens_per_second": outcome.decode.tokens_per_second if outcome.decode else None,
        "merged_decode_time_over_unmerged": outcome.merged_decode.time_ratio if outcome.merged_decode else None,
        "best_step": outcome.best_step,
        "dev_loss": outcome.dev_loss,
        "memory_method": outcome.ranks[0].memory_method,
        "adapter_bytes": outcome.adapter_bytes,
        "train_pairs": outcome.data.get("train_pairs"),
        **_phase_values(outcome),
    }
    if (planned := outcome.predicted) is not None:
        values |= {
            "planned_flops": planned.flops,
            "planned_memory_bytes": planned.peak_memory_bytes,
            "planned_step_seconds": planned.step_seconds,
            "planned_total_seconds": planned.total_seconds,
        }
    if outcome.train is None:
        return values | {"learning_rate": None}
    training = [(cost, cost.phases["train"]) for cost in outcome.ranks]
    return values | {
        "peak_memory_bytes": values["train_peak_memory_bytes"],
        "memory_over_baseline_bytes": max(
            phase.peak_memory_bytes - cost.baseline_memory_bytes for cost, phase in training
        ),
        "energy_joules": _sum(phase.energy_joules for _, phase in training),
        "steps": outcome.train.steps,
        "train_tokens_per_second": outcome.train.tokens_per_second,
        "step_seconds_p50": outcome.train.step_seconds_p50,
        "step_seconds_p90": outcome.train.step_seconds_p90,
        "step_seconds_p99": outcome.train.step_seconds_p99,
        "useful_token_fraction": outcome.train.useful_token_fraction,
    }


def _sum(values: Iterable[float | None]) -> float | None:
    """Of all ranks; None where one of them does not tell."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if len(known) == len(found) else None


def _phases(result: TrialResult) -> Iterable[str]:
    return () if isinstance(result.outcome, Failed) else result.outcome.ranks[0].phases


def _phase_values(outcome: Ran) -> JsonDict:
    """Seconds of the slowest and peak of the largest rank, for each phase."""
    values: JsonDict = {}
    for phase in dict.fromkeys(phase for cost in outcome.ranks for phase in cost.phases):
        found: list[PhaseCost] = [cost.phases[phase] for cost in outcome.ranks if phase in cost.phases]
        values[f"{phase}_seconds"] = max(cost.seconds for cost in found)
        values[f"{phase}_peak_memory_bytes"] = max(cost.peak_memory_bytes for cost in found)
    return values
