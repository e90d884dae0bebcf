"""Weights & Biases: a project for each sweep, a run for each attempt. Log in first, or set WANDB_MODE=offline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb
from pydantic import Field

from bench.driver.trackers.tracker import Tracker, TrackerConfig

OF_ONE_RUN = (
    "WANDB_CONFIG_PATHS",
    "WANDB_DESCRIPTION",
    "WANDB_DIR",
    "WANDB_JOB_TYPE",
    "WANDB_NAME",
    "WANDB_NOTES",
    "WANDB_PROJECT",
    "WANDB_RESUME",
    "WANDB_RUN_DIR",
    "WANDB_RUN_GROUP",
    "WANDB_RUN_ID",
    "WANDB_RUN_STORAGE_ID",
    "WANDB_SWEEP_ID",
    "WANDB_SWEEP_PARAM_PATH",
)


class WeightsAndBiases(Tracker):
    """Curves, settings and final values; the environment and the code of the driver are not uploaded.

    What the environment says of one run (scripts of batch systems export an id, a name, a sweep) is not about ours, of
    which there are several: wandb would merge them. Entity, base URL, key, mode and tags of the environment hold.
    """

    class Config(TrackerConfig):
        """Where runs go and how they are filed."""

        project: str | None = Field(None, description="null: the sweep's name")
        entity: str | None = Field(None, description="user or team; null: wandb's default")
        group: str | None = Field(None, description="null: the sweep's name")
        job_type: str | None = None
        tags: list[str] = Field(default_factory=list)

    def __init__(self, root: Path, sweep: str) -> None:
        super().__init__(root, sweep)
        for name in OF_ONE_RUN:
            os.environ.pop(name, None)
        self._runs: dict[str, Any] = {}

    def begin(self, trial_id: str, settings: Mapping[str, str]) -> None:
        self._finish(trial_id, 1)
        run = self._runs[trial_id] = wandb.init(
            project=self.config.project or self.sweep,
            entity=self.config.entity,
            group=self.config.group or self.sweep,
            job_type=self.config.job_type,
            tags=self.config.tags or None,
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
