"""What a sweep will do, before it does it: its trials and what each of them trains. Writes nothing, starts nothing."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from bench import models
from bench.record import ParameterCounts
from bench.registry import load_method
from bench.spec import MethodSpec, ModelSpec, TrialSpec
from bench.worker import count_parameters


@dataclass(frozen=True)
class PlannedTrial:
    """A trial and what it would train."""

    spec: TrialSpec
    parameters: ParameterCounts


def plan(trials: Sequence[TrialSpec]) -> list[PlannedTrial]:
    """Count the parameters of every trial on a model without weights."""
    return [PlannedTrial(spec, planned_parameters(spec.method, spec.model)) for spec in trials]


def planned_parameters(method: MethodSpec, model: ModelSpec) -> ParameterCounts:
    """Parameters of a method on a model, from the model's configuration alone."""
    return _planned_parameters(method.target, json.dumps(method.config), model)


@functools.cache
def _planned_parameters(target: str, config: str, model: ModelSpec) -> ParameterCounts:
    method_class = load_method(target)
    method = method_class(method_class.Config(**json.loads(config)))
    return count_parameters(method, method.patch(models.empty_model(model)))
