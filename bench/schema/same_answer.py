"""Finds trials that have the same answer under different ids.

What a method that trains nothing makes of a model does not depend on how the others are trained. Ids are older than
this and stay as they are, so that no record is lost; trials and records are matched by what is here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable

from bench.schema.record import Failed, TrialResult
from bench.schema.trial import JsonDict, TrialSpec

# How a trial trains: its settings, and the optimiser where that is a plugin's.
TRAINING = ("train", "optimizer")


def answer(spec: TrialSpec, trains: bool, without: Collection[str] = ()) -> JsonDict:
    """The fields that the answer of a trial depends on: its identity, without how it is trained if nothing is.

    Args:
        spec: The trial.
        trains: Whether its method trains anything.
        without: More fields that are left out, see :meth:`TrialSpec.identity_without`.
    """
    return spec.identity_without(*(() if trains else TRAINING), *without)


def answer_key(spec: TrialSpec, trains: bool, without: Collection[str] = ()) -> str:
    """A text that is equal for trials of equal answers, apart from these fields of the identity."""
    return json.dumps(answer(spec, trains, without), sort_keys=True)


def distinct(trials: Iterable[TrialSpec], trains: Callable[[TrialSpec], bool]) -> tuple[TrialSpec, ...]:
    """The first trial of each answer.

    Args:
        trials: In order.
        trains: Whether the method of a trial trains anything.
    """
    found: dict[str, TrialSpec] = {}
    for trial in trials:
        found.setdefault(answer_key(trial, trains(trial)), trial)
    return tuple(found.values())


def cost_class(spec: TrialSpec, trains: bool) -> str:
    """A text that is equal for trials that share a measurement of cost."""
    if trains:
        return spec.configuration_class
    return answer_key(spec.measured, trains)


def untrained(results: Iterable[TrialResult]) -> frozenset[str]:
    """The classes of the methods that train nothing, as far as these records tell."""
    return frozenset(
        result.spec.method.target
        for result in results
        if not isinstance(result.outcome, Failed) and result.outcome.train is None and result.spec.loaded is None
    )
