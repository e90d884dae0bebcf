"""The interface of trackers, and the values that they are given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.report.columns import tracked_columns
from bench.schema.record import Failed, Ran, TrialResult
from bench.schema.strict_numbers import StrictNumbers
from bench.schema.trial import JsonDict, TrialSpec

LONGEST_SETTING = 500


class TrackerConfig(StrictNumbers):
    """Settings of a tracker; by default there are none."""


class Tracker:
    """Hears of the trials of one sweep. Each method has a default that does nothing.

    Whatever a tracker raises switches it off, and no trial hears of it. All calls come from one thread, which is not
    the driver's, so that a slow tracker delays nothing.

    Args:
        root: Folder of the sweep's results.
        sweep: Its name.
    """

    class Config(TrackerConfig):
        """What a sweep may say under ``trackers:``; ``self.config`` holds it from the first call on."""

    config: Any = None

    def __init__(self, root: Path, sweep: str) -> None:
        self.root, self.sweep = root, sweep

    def begin(self, trial_id: str, settings: Mapping[str, str]) -> None:
        """Ranks of a trial are being started, for the first time or again."""

    def log(self, trial_id: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of an optimiser step, such as ``train/loss``.

        While the trial trains, at most two a second; when it is over, the rest of its curves, of earlier steps too.
        """

    def end(self, trial_id: str, values: Mapping[str, float], failure: str | None) -> None:
        """The attempt is over.

        Args:
            trial_id: Of its trial.
            values: Scores, costs and counts of a trial that ran to its end.
            failure: Reason and message of one that did not.
        """

    def close(self) -> None:
        """The run of the sweep is over."""


def settings_of(spec: TrialSpec) -> dict[str, str]:
    """Settings of a trial, flat: ``train.learning_rate`` and so on. Those without a value are left out."""
    found: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        elif value is not None:
            found[prefix] = str(value)[:LONGEST_SETTING]

    walk("", spec.model_dump(mode="json"))
    return found


def values_of(result: TrialResult) -> dict[str, float]:
    """Numbers of a record, as tables have them; none where the trial failed."""
    columns = tracked_columns(result)
    return {name: value for name, column in columns.items() if (value := column.number(result)) is not None}


def curve_of(result: TrialResult, after_step: int) -> list[tuple[int, dict[str, float]]]:
    """Points of a record's curves that were not told live: losses of later steps, and every loss on the dev pairs."""
    if not isinstance(result.outcome, Ran):
        return []
    train = [
        (point.step, {"train/loss": point.loss}) for point in result.outcome.train_curve if point.step > after_step
    ]
    return [*train, *((point.step, {"dev/loss": point.loss}) for point in result.outcome.dev_curve)]


def failure_of(result: TrialResult) -> str | None:
    """Why a trial failed."""
    outcome = result.outcome
    return f"{outcome.reason}: {outcome.message}" if isinstance(outcome, Failed) else None


def step_values(data: JsonDict) -> dict[str, float]:
    """Numbers in a rank's progress."""
    names = {"loss": "train/loss", "tokens_per_second": "train/tokens_per_second"}
    return {to: float(data[name]) for name, to in names.items() if data.get(name) is not None}
