"""The optimiser of a trial and the schedule of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.spec import TrainSpec


def make_optimizer(train: TrainSpec, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser that a sweep asks for, over a method's parameter groups.

    Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) takes the learning rate as it is, without scaling it by the size
    of the parameter, as Lester et al. 2021 use it; decay exponent 0.8, update clipping at 1.0 and no first moment are
    the paper's.

    Args:
        train: Settings.
        groups: As :meth:`bench.method.Method.parameter_groups` gives them; ``lr_scale`` multiplies the learning rate.
    """
    scaled = [{"params": group["params"], "lr": train.learning_rate * group.get("lr_scale", 1.0)} for group in groups]
    if train.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        optimizer: torch.optim.Optimizer = Adafactor(
            scaled,
            lr=train.learning_rate,
            weight_decay=train.weight_decay,
            scale_parameter=False,
            relative_step=False,
        )
        return optimizer
    return torch.optim.AdamW(
        scaled,
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        weight_decay=train.weight_decay,
        fused=True,
    )


def learning_rate_factor(train: TrainSpec, steps: int) -> Callable[[int], float]:
    """Multiplier of the learning rate for the step with this index (from 0)."""

    def factor(step: int) -> float:
        if step < train.warmup_steps:
            return (step + 1) / train.warmup_steps
        if train.schedule == "constant":
            return 1.0
        progress = (step - train.warmup_steps) / max(1, steps - train.warmup_steps)
        return 1.0 - progress if train.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor
