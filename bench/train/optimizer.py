"""The optimiser of a trial and the schedule of its learning rate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bench.method import Method, MethodError, trained_parameters
from bench.optimizers.optimizer import Optimizer
from bench.plugins.registry import load_optimizer
from bench.schema.trial import TrainSpec

# What the loop reads of a group.
GROUP_KEYS = frozenset({"params", "lr_scale"})


def optimizer_of(train: TrainSpec) -> Optimizer:
    """What a sweep calls its optimiser, with its settings."""
    return load_optimizer(train.optimizer)(train)


def sound_groups(method: Method, model: nn.Module) -> list[dict[str, Any]]:
    """The parameter groups of a method, which say nothing that would be ignored and leave no trained tensor out.

    Raises:
        MethodError: They do.
    """
    names = {id(parameter): name for name, parameter in trained_parameters(model)}
    groups = [{**group, "params": list(group["params"])} for group in method.parameter_groups(model)]
    if ignored := sorted({key for group in groups for key in group} - GROUP_KEYS):
        raise MethodError(
            f"{type(method).__name__}: a parameter group has the key {ignored[0]!r}, which nothing reads; "
            f"{' and '.join(sorted(GROUP_KEYS))} are read, and train.weight_decay and train.weight_decay_on of a sweep "
            "say what decays"
        )
    held = Counter(id(parameter) for group in groups for parameter in group["params"])
    if left_out := [name for identity, name in names.items() if identity not in held]:
        raise MethodError(
            f"{type(method).__name__}: no parameter group holds {left_out[0]}, which requires grad and would never move"
        )
    if held.keys() - names.keys() or held.total() > len(held):
        raise MethodError(
            f"{type(method).__name__}: parameter groups hold a tensor that is not trained, or one of them twice"
        )
    return groups


def make_optimizer(train: TrainSpec, model: nn.Module, groups: Sequence[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser that a sweep asks for, with the parameter groups of a method.

    Args:
        train: Settings.
        model: The names and kinds of its layers decide which parameters have no weight decay.
        groups: As :meth:`bench.method.Method.parameter_groups` gives them; ``lr_scale`` multiplies the learning rate.
    """
    decaying = _decaying(train, model)
    scaled = [
        {"params": part, "lr": train.learning_rate * group.get("lr_scale", 1.0), "weight_decay": weight_decay}
        for group in groups
        for part, weight_decay in _parted(group["params"], decaying, train.weight_decay)
    ]
    return optimizer_of(train).make(scaled, model)


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


# Of the schedule inverse_sqrt without a warm-up, as in transformers.
TIMESCALE_STEPS = 10_000


def learning_rate_factor(train: TrainSpec, steps: int) -> Callable[[int], float]:
    """A function from the index of a step, from 0, to the factor of its learning rate.

    The schedules are those of ``transformers.get_scheduler``; of ``warmup_stable_decay`` the decay is by a cosine.
    """
    warmup = train.warmup_steps_of(steps)
    decay = math.ceil(train.decay_fraction * steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + (train.warmup_start == "first_step")) / warmup
        match train.schedule:
            case "constant":
                return 1.0
            case "inverse_sqrt":
                timescale = warmup or TIMESCALE_STEPS
                return math.sqrt(timescale / (step + timescale - warmup))
            case "wsd":
                return _cosine(max(0.0, (step - (steps - decay)) / decay))
        progress = (step - warmup) / max(1, steps - warmup)
        return 1.0 - progress if train.schedule == "linear" else _cosine(progress)

    return factor


def _cosine(progress: float) -> float:
    """Half a wave from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))
