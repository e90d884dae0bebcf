"""MLflow: an experiment for each sweep, a run for each attempt, where MLFLOW_TRACKING_URI says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param

from bench.driver.trackers.tracker import Tracker


class MLflow(Tracker):
    """Curves, settings and final values."""

    def __init__(self, root: Path, sweep: str) -> None:
        super().__init__(root, sweep)
        self._client: Any = MlflowClient()
        found = self._client.get_experiment_by_name(sweep)
        self._experiment_id = found.experiment_id if found is not None else self._client.create_experiment(sweep)
        self._runs: dict[str, str] = {}

    def begin(self, trial_id: str, settings: Mapping[str, str]) -> None:
        self._finish(trial_id, "KILLED")
        run = self._client.create_run(self._experiment_id, run_name=trial_id)
        self._runs[trial_id] = run.info.run_id
        self._client.log_batch(run.info.run_id, params=[Param(name, value) for name, value in settings.items()])

    def log(self, trial_id: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._client.log_metric(self._runs[trial_id], name, value, step=step)

    def end(self, trial_id: str, values: Mapping[str, float], failure: str | None) -> None:
        self.log(trial_id, 0, {f"final/{name}": value for name, value in values.items()})
        if failure is not None:
            self._client.set_tag(self._runs[trial_id], "failure", failure)
        self._finish(trial_id, "FINISHED" if failure is None else "FAILED")

    def close(self) -> None:
        for trial_id in list(self._runs):
            self._finish(trial_id, "KILLED")

    def _finish(self, trial_id: str, status: str) -> None:
        if (run_id := self._runs.pop(trial_id, None)) is not None:
            self._client.set_terminated(run_id, status)
