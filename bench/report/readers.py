"""How the columns of a report find their values in a record. What a record does not tell is None."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from bench.report.column import Reader, Value
from bench.schema.record import Completed, Failed, Forecast, MergedDecode, PhaseCost, Ran, TrainCost, TrialResult


def ran_reader(read: Callable[[Ran], Value]) -> Reader:
    """Of trials that ran to their end."""

    def read_value(record: TrialResult) -> Value:
        return read(record.outcome) if isinstance(record.outcome, Ran) else None

    return read_value


def completed_reader(read: Callable[[Completed], Value]) -> Reader:
    """Of trials that were scored on the test split."""

    def read_value(record: TrialResult) -> Value:
        return read(record.outcome) if isinstance(record.outcome, Completed) else None

    return read_value


def failed_reader(read: Callable[[Failed], Value]) -> Reader:
    """Of trials that ended early."""

    def read_value(record: TrialResult) -> Value:
        return read(record.outcome) if isinstance(record.outcome, Failed) else None

    return read_value


def training_reader(read: Callable[[TrainCost], Value]) -> Reader:
    """Of trials that trained something, to their end."""
    return ran_reader(lambda outcome: None if outcome.train is None else read(outcome.train))


def plan_reader(read: Callable[[Forecast], Value]) -> Reader:
    """Of trials that were planned."""
    return ran_reader(lambda outcome: None if outcome.predicted is None else read(outcome.predicted))


def merged_reader(read: Callable[[MergedDecode], Value]) -> Reader:
    """Of trials that were decoded with their adapter folded into the base weights too."""
    return ran_reader(lambda outcome: None if outcome.merged_decode is None else read(outcome.merged_decode))


def origin_reader(name: str) -> Reader:
    """A field of the provenance."""

    def read_value(record: TrialResult) -> Value:
        found: Value = None if record.provenance is None else getattr(record.provenance, name)
        return found

    return read_value


def score_reader(name: str) -> Reader:
    """A test score over all sources."""
    return completed_reader(lambda outcome: outcome.scores.values.get(name))


def phase_reader(phase: str, field: Literal["seconds", "peak_memory_bytes"]) -> Reader:
    """The slowest or largest rank of a phase."""

    def read_value(outcome: Ran) -> Value:
        values = [getattr(cost, field) for cost in _phase(outcome, phase)]
        found: Value = max(values) if values else None
        return found

    return ran_reader(read_value)


def peak_of_training(outcome: Ran) -> Value:
    """Bytes of the largest rank while it trains."""
    return None if outcome.train is None else max(cost.peak_memory_bytes for cost in _phase(outcome, "train"))


def peak_over_baseline(outcome: Ran) -> Value:
    """Likewise, beyond what was there before the model was loaded."""
    if outcome.train is None:
        return None
    return max(cost.phases["train"].peak_memory_bytes - cost.baseline_memory_bytes for cost in outcome.ranks)


def peak_of_all(outcome: Ran) -> Value:
    """Bytes of the largest rank in its largest phase."""
    peaks = (phase.peak_memory_bytes for rank in outcome.ranks for phase in rank.phases.values())
    return max(peaks, default=None)


def energy_of_training(outcome: Ran) -> Value:
    """Joules of all ranks; None where one of them does not tell."""
    return None if outcome.train is None else _sum(cost.energy_joules for cost in _phase(outcome, "train"))


def rate_of_decoding(record: TrialResult) -> Value:
    """New tokens per second, of the dev or the test sources."""
    outcome = record.outcome
    return None if isinstance(outcome, Failed) or outcome.decode is None else outcome.decode.tokens_per_second


def learning_rate(record: TrialResult) -> Value:
    """None of what trains nothing."""
    outcome = record.outcome
    return None if isinstance(outcome, Ran) and outcome.train is None else record.spec.train.learning_rate


def _phase(outcome: Ran, phase: str) -> Iterator[PhaseCost]:
    return (cost.phases[phase] for cost in outcome.ranks if phase in cost.phases)


def _sum(values: Iterable[float | None]) -> float | None:
    parts = list(values)
    known = [value for value in parts if value is not None]
    return sum(known) if len(known) == len(parts) else None
