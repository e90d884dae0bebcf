"""Trials of a sweep in the process of a test, one after the other, with their records."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from one_rank import CPU

from bench.measure.phases import PhaseMeter
from bench.rank.context import RankContext
from bench.rank.trial import _Trial, run_trials
from bench.schema.record import Completed, Probed, TrialResult
from bench.schema.trial import TrialSpec
from bench.store.outbox import new_attempt, payload
from bench.store.records import Store


def run_here(store: Store, specs: Sequence[TrialSpec], alone: bool = True, sweep: str = "tiny") -> list[TrialResult]:
    """Their records; the process must have joined its group of one.

    Args:
        store: Where the records go.
        specs: The trials.
        alone: Whether their costs are forecast and compared with those of merged weights.
        sweep: Its name.
    """
    results = []
    for spec in specs:
        started = new_attempt(spec, sweep, "local", [])
        outbox = store.outbox / spec.trial_id
        outbox.mkdir(parents=True)
        context = RankContext(0, 1, 0, torch.distributed.HashStore(), outbox, "", 1)
        outcome = run_trials([_Trial(spec, context, CPU, PhaseMeter(CPU), alone)]).outcome
        assert isinstance(outcome, Completed | Probed), outcome
        results.append(store.commit(started.result(outcome, None, 1.0, None), payload(outbox)))
    return results
