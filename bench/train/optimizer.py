"""The optimiser of a trial and the schedule of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bench.schema.trial import TrainSpec


def make_optimizer(train: TrainSpec, model: nn.Module, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser that a sweep asks for, with the parameter groups of a method.

    Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) takes the learning rate as it is, without scaling it by the size
    of the parameter, as Lester et al. 2021 use it; decay exponent 0.8, update clipping at 1.0 and no first moment are
    the paper's.

    Args:
        train: Settings.
        model: Names and kinds of its layers say which parameters weight decay spares.
        groups: As :meth:`bench.method.Method.parameter_groups` gives them; ``lr_scale`` multiplies the learning rate.
    """
    decaying = _decaying(train, model)
    scaled = [
        {"params": part, "lr": train.learning_rate * group.get("lr_scale", 1.0), "weight_decay": weight_decay}
        for group in groups
        for part, weight_decay in _parted(group["params"], decaying, train.weight_decay)
    ]
    if train.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        optimizer: torch.optim.Optimizer = Adafactor(
            scaled,
            lr=train.learning_rate,
            scale_parameter=False,
            relative_step=False,
        )
        return optimizer
    return torch.optim.AdamW(
        scaled,
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        eps=train.adam_epsilon,
        fused=True,
    )


# Weight decay spares parameters with such names, as ``Trainer.get_decay_parameter_names`` of transformers does.
SPARED = ("bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")


def _decaying(train: TrainSpec, model: nn.Module) -> set[nn.Parameter] | None:
    """The parameters that decay; None: all."""
    if not train.weight_decay or train.weight_decay_on == "all":
        return None
    from transformers.trainer_pt_utils import get_parameter_names

    named = dict(model.named_parameters(remove_duplicate=False))
    return {named[name] for name in get_parameter_names(model, [nn.LayerNorm], SPARED) if name in named}


def _parted(
    parameters: Sequence[nn.Parameter], decaying: set[nn.Parameter] | None, weight_decay: float
) -> list[tuple[list[nn.Parameter], float]]:
    """A group in two parts, with and without weight decay. A part without parameters is left out."""
    if decaying is None:
        return [(list(parameters), weight_decay)]
    parts: tuple[tuple[list[nn.Parameter], float], ...] = ([], weight_decay), ([], 0.0)
    for parameter in parameters:
        parts[parameter not in decaying][0].append(parameter)
    return [part for part in parts if part[0]]


def learning_rate_factor(train: TrainSpec, steps: int) -> Callable[[int], float]:
    """A function from the index of a step, from 0, to the factor of its learning rate."""

    def factor(step: int) -> float:
        if step < train.warmup_steps:
            return (step + (train.warmup_start == "first_step")) / train.warmup_steps
        if train.schedule == "constant":
            return 1.0
        progress = (step - train.warmup_steps) / max(1, steps - train.warmup_steps)
        return 1.0 - progress if train.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor
