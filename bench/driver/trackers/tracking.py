"""Trackers as one observer of a sweep. A tracker that fails or is slow neither fails nor delays a trial."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import queue
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from bench.driver.observer import Observer
from bench.driver.trackers.tracker import Tracker, curve_of, failure_of, settings_of, step_values, values_of
from bench.launch.launcher import Progress
from bench.schema.record import TrialResult
from bench.schema.trial import JsonDict
from bench.schema.validation import ConfigError, validated
from bench.store.outbox import StartedAttempt

# Name: class, and the package that it needs.
BUILT_IN = {
    "tensorboard": ("bench.driver.trackers.tensorboard:TensorBoard", "tensorboardX"),
    "wandb": ("bench.driver.trackers.wandb:WeightsAndBiases", "wandb"),
    "mlflow": ("bench.driver.trackers.mlflow:MLflow", "mlflow"),
}
MOST_WAITING = 10_000
CLOSE_SECONDS = 30.0

Call = Callable[[Tracker], None]


def tracker_target(name: str) -> str:
    """``module:Class`` of a tracker.

    Raises:
        ConfigError: There is none of this name, or its package is not installed.
    """
    if name in BUILT_IN:
        target, package = BUILT_IN[name]
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"--tracker {name} needs the package {package}: pip install 'tuneoff[{name}]'")
        return target
    module, colon, class_name = name.partition(":")
    if not colon or not module or not class_name:
        raise ConfigError(f"--tracker {name}: known are {', '.join(BUILT_IN)}, and any module:Class that is a Tracker")
    try:
        found = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--tracker {name}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Tracker)):
        raise ConfigError(f"--tracker {name}: it is no bench.driver.trackers.tracker.Tracker")
    return name


class Tracking(Observer):
    """Tells trackers what happens, in a thread of its own.

    Args:
        trackers: Names of the trackers, with their settings.
        root: Folder of the sweep's results.
        sweep: Its name.
        say: Shows a message; once for each tracker that fails.

    Raises:
        ConfigError: There is no tracker of this name, or no such setting.
    """

    def __init__(self, trackers: Mapping[str, JsonDict], root: Path, sweep: str, say: Callable[[str], None]) -> None:
        self._make = {
            name: partial(_make_tracker, tracker_target(name), root, sweep, settings)
            for name, settings in trackers.items()
        }
        for name, settings in trackers.items():
            if settings:
                validated(_tracker_class(tracker_target(name)).Config, settings, f"trackers.{name}")
        self._say = say
        self._calls: queue.Queue[Call | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        self._left_out = 0
        self._last_steps: dict[str, int] = {}
        self._begun: set[str] = set()
        if trackers:
            self._thread.start()

    def close(self) -> None:
        """Wait, but not for long, until the trackers have taken all messages."""
        if not self._make:
            return
        self._put(lambda tracker: tracker.close())
        with contextlib.suppress(queue.Full):
            self._calls.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._say(
                f"trackers have not taken everything within {CLOSE_SECONDS:g} s; the results are complete without"
            )
        elif self._left_out:
            self._say(f"trackers were too slow for {self._left_out} messages; the results are complete without")

    def started(self, attempt: StartedAttempt) -> None:
        trial_id, settings = attempt.spec.trial_id, settings_of(attempt.spec)
        self._begun.add(trial_id)
        self._put(lambda tracker: tracker.begin(trial_id, settings))

    def progressed(self, progress: Progress) -> None:
        if progress.rank == 0 and "step" in progress.data and (values := step_values(progress.data)):
            trial_id, step = progress.trial_id, int(progress.data["step"])
            self._last_steps[trial_id] = step
            self._put(lambda tracker: tracker.log(trial_id, step, values))

    def lost(self, result: TrialResult, again_in_seconds: float) -> None:
        self._end(result)

    def committed(self, result: TrialResult) -> None:
        self._end(result)

    def _end(self, result: TrialResult) -> None:
        """Trackers hear nothing of a trial that never began: no machine holds it, or it was cancelled before."""
        trial_id, values, failure = result.trial_id, values_of(result), failure_of(result)
        if trial_id not in self._begun:
            return
        self._begun.discard(trial_id)
        curve = curve_of(result, self._last_steps.pop(trial_id, 0))

        def tell(tracker: Tracker) -> None:
            for step, losses in curve:
                tracker.log(trial_id, step, losses)
            tracker.end(trial_id, values, failure)

        self._put(tell)

    def _put(self, call: Call) -> None:
        if not self._make:
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._left_out += 1

    def _work(self) -> None:
        trackers: dict[str, Tracker] = {}
        for name, make in self._make.items():
            self._guarded(name, trackers, make)
        while (call := self._calls.get()) is not None:
            for name, tracker in list(trackers.items()):
                self._guarded(name, trackers, lambda: call(tracker))  # noqa: B023 - called at once

    def _guarded(self, name: str, trackers: dict[str, Tracker], call: Callable[[], Tracker | None]) -> None:
        """Call a tracker. If it fails, say so once and never call it again."""
        try:
            made = call()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - code of a tracker must not fail a trial
            trackers.pop(name, None)
            message = " ".join(str(error).split())[:300]
            self._say(f"tracker {name} failed and is off, the trials go on: {type(error).__name__}: {message}")
        else:
            if made is not None:
                trackers[name] = made


def _make_tracker(target: str, root: Path, sweep: str, settings: JsonDict) -> Tracker:
    tracker_class = _tracker_class(target)
    made = tracker_class(root, sweep)
    made.config = tracker_class.Config.model_validate(settings)
    return made


def _tracker_class(target: str) -> type[Tracker]:
    module, _, class_name = target.partition(":")
    found: type[Tracker] = getattr(importlib.import_module(module), class_name)
    return found
