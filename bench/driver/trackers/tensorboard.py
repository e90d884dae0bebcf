"""TensorBoard: event files in ``<results>/<sweep>/tensorboard/<trial_id>/``. Needs no server to write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from bench.driver.trackers.tracker import Tracker


class TensorBoard(Tracker):
    """Curves while a trial trains; settings and final values when it is over."""

    def __init__(self, root: Path, sweep: str) -> None:
        super().__init__(root, sweep)
        self._writers: dict[str, Any] = {}

    def begin(self, trial_id: str, settings: Mapping[str, str]) -> None:
        self._close(trial_id)
        writer = self._writers[trial_id] = SummaryWriter(str(self.root / "tensorboard" / trial_id))
        writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in settings.items()))

    def log(self, trial_id: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writers[trial_id].add_scalar(name, value, step)
        self._writers[trial_id].flush()

    def end(self, trial_id: str, values: Mapping[str, float], failure: str | None) -> None:
        for name, value in values.items():
            self._writers[trial_id].add_scalar(f"final/{name}", value, 0)
        if failure is not None:
            self._writers[trial_id].add_text("failure", failure)
        self._close(trial_id)

    def close(self) -> None:
        for trial_id in list(self._writers):
            self._close(trial_id)

    def _close(self, trial_id: str) -> None:
        if (writer := self._writers.pop(trial_id, None)) is not None:
            writer.close()
