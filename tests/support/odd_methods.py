"""Methods that misbehave on purpose, named in sweeps as ``odd_methods:Class``."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.method import Method
from methods.full import FullFineTuning


class Raises(Method):
    """Fails in patch."""

    def patch(self, model: Any) -> nn.Module:
        raise KeyError("the method's own mistake")


class Allocates(Method):
    """Asks for more memory than there is."""

    def patch(self, model: Any) -> nn.Module:
        torch.empty(2**50)
        return model


class Dies(FullFineTuning):
    """Its process is killed in training, always."""

    def after_step(self, model: nn.Module, step: int) -> None:
        os.kill(os.getpid(), 9)


class Slow(FullFineTuning):
    """Leaves a mark at every step and takes its time."""

    def after_step(self, model: nn.Module, step: int) -> None:
        Path(os.environ["SLOW_MARK"]).touch()
        time.sleep(float(os.environ["SLOW_SECONDS"]))
