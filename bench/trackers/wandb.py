"""Weights & Biases: a project for each sweep, a run for each attempt. Log in first, or set WANDB_MODE=offline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from bench.trackers.tracker import Tracker


class WeightsAndBiases(Tracker):
    """Curves, settings and final values; the environment and the code of the driver are not uploaded."""

    def __init__(self, root: Path, sweep: str) -> None:
        super().__init__(root, sweep)
        self._runs: dict[str, Any] = {}

    def begin(self, trial_id: str, settings: Mapping[str, str]) -> None:
        self._finish(trial_id, 1)
        run = self._runs[trial_id] = wandb.init(
            project=self.sweep,
            name=trial_id,
            config=dict(settings),
            dir=str(self.root),
            reinit="create_new",  # several trials run at once
            settings=wandb.Settings(
                console="off", save_code=False, disable_git=True, x_disable_meta=True, x_disable_stats=True, silent=True
            ),
        )
        run.define_metric("*", step_metric="step")  # so that points may come in any order

    def log(self, trial_id: str, step: int, values: Mapping[str, float]) -> None:
        self._runs[trial_id].log({**values, "step": step})

    def end(self, trial_id: str, values: Mapping[str, float], failure: str | None) -> None:
        self._runs[trial_id].summary.update({**values, **({} if failure is None else {"failure": failure})})
        self._finish(trial_id, 0 if failure is None else 1)

    def close(self) -> None:
        for trial_id in list(self._runs):
            self._finish(trial_id, 1)

    def _finish(self, trial_id: str, exit_code: int) -> None:
        if (run := self._runs.pop(trial_id, None)) is not None:
            run.finish(exit_code=exit_code)
