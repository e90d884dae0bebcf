"""Trains several trials in one pass over a frozen model: copies that share its weights, and the engine of the pass."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bench.lane_rows import Lanes
from bench.method import trained_parameters
from bench.train.deepspeed_engine import require_no_state
from bench.train.lane import Lane


def copies_sharing_weights(model: Any, count: int) -> list[Any]:
    """Make models that a method can patch one by one and that share all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return [model, *(copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}) for _ in range(count - 1))]


class FusedEngine:
    """Steps the optimisers of several trials after one backward pass. The loop uses it like DeepSpeed's engine.

    Each trial has its gradients clipped, and its schedule advanced, by itself. A trial without rows in a pass makes no
    step.

    Args:
        loss: Of the model that all rows go through.
        lanes: One for each trial.
        shared_rows: Says which lanes have rows in a pass.
        accumulation: Backward passes for each step.
    """

    skipped_steps = 0

    def __init__(self, loss: nn.Module, lanes: Sequence[Lane], shared_rows: Lanes, accumulation: int) -> None:
        self.loss = loss
        self.shared_rows = shared_rows
        self.lanes = [(lane, [parameter for _, parameter in trained_parameters(lane.model)]) for lane in lanes]
        for lane in lanes:
            require_no_state(lane.optimizer, "the engine of fused trials")
        self.accumulation = accumulation
        self._passes = 0
        self._stepping: Sequence[int] = ()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.loss(*args, **kwargs)

    def train(self) -> None:
        self.loss.train()

    def eval(self) -> None:
        self.loss.eval()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of ``loss``, averaged over the passes of a step."""
        self._stepping = self.shared_rows.active
        (loss / self.accumulation).backward()  # type: ignore[no-untyped-call]

    def step(self) -> None:
        """After the last pass of a step, step the optimisers of the trials that had rows."""
        self._passes += 1
        if self._passes % self.accumulation:
            return
        for number in self._stepping:
            lane, parameters = self.lanes[number]
            if lane.train.max_grad_norm:
                nn.utils.clip_grad_norm_(parameters, lane.train.max_grad_norm)
            lane.optimizer.step()
            lane.optimizer.zero_grad()
            lane.scheduler.step()

    def destroy(self) -> None:
        """Do nothing: this engine keeps nothing that has to be released."""
