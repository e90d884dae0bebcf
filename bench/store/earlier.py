"""Finds records of a sweep that answer a trial under another id, so that the trial need not run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from bench.schema.record import Failed
from bench.schema.same_answer import answer_key
from bench.schema.trial import TrialSpec, id_slug
from bench.store.record_index import Known, known_of
from bench.store.records import Store


class EarlierAnswers:
    """Finds records by what they answer.

    An id is a readable part and a hash. Another grid changes the readable part. Training settings change the hash, even
    for a method that trains nothing, whose answer does not depend on them.

    Args:
        store: Of the sweep.
        trains: Whether the method of a trial trains anything.
    """

    def __init__(self, store: Store, trains: Callable[[TrialSpec], bool]) -> None:
        self.store = store
        self.trains = trains

    def find(self, trial: TrialSpec) -> Known | None:
        """A record of the same answer that has not failed; None if there is none."""
        trains = self.trains(trial)
        digest = trial.trial_id.rpartition("-")[2]
        candidates = list(self._by_digest.get(digest, ()))
        if not trains:
            candidates += [trial_id for trial_id in self._trial_ids if trial_id.startswith(id_slug(trial.method.name))]
        key = answer_key(trial, trains)
        for trial_id in dict.fromkeys(candidates):
            record = self.store.read(trial_id)
            if record is not None and not isinstance(record.outcome, Failed) and answer_key(record.spec, trains) == key:
                return known_of(record)
        return None

    @cached_property
    def _trial_ids(self) -> list[str]:
        return self.store.trial_ids()

    @cached_property
    def _by_digest(self) -> dict[str, list[str]]:
        by_digest: dict[str, list[str]] = {}
        for trial_id in self._trial_ids:
            by_digest.setdefault(trial_id.rpartition("-")[2], []).append(trial_id)
        return by_digest
