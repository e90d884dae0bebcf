"""A method that records the time at which its first step ended."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from torch import nn

from methods.full import FullFineTuning


class Marking(FullFineTuning):
    """Full fine-tuning."""

    def after_step(self, model: nn.Module, step: int) -> None:
        if not getattr(self, "_marked", False):
            self._marked = True
            (Path(os.environ["OVERHEAD_MARKS"]) / uuid.uuid4().hex).write_text(repr(time.time()))
