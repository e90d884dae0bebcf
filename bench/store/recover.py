"""Puts in order what an earlier driver left behind: it commits finished attempts and notes interrupted ones."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.schema.record import Failed, TrialResult
from bench.store import outbox
from bench.store.records import CorruptRecordError, Store, damaged_files
from bench.store.retry import RetryPolicy

# Files up to this size are compared with their checksums whenever a sweep is taken up again.
CHECKED_BYTES = 16 * 2**20


@dataclass
class Recovered:
    """What :func:`recover` did."""

    committed: list[TrialResult] = field(default_factory=list)
    set_aside: dict[str, str] = field(default_factory=dict)
    """Trial id to what is wrong with its record."""


def recover(store: Store) -> Recovered:
    """Put a sweep's folder in order before anything runs.

    Records that are torn or were changed are set aside, so that their trials run again. Records that the index knows to
    be intact are not read. Attempts that had finished when the driver died are committed; of unfinished ones the logs
    are kept. An attempt that is not the current one of its trial is dropped.
    """
    recovered = Recovered()
    trial_ids = store.trial_ids()
    store.index.keep_only(trial_ids)
    for trial_id in trial_ids:
        if store.index.known(trial_id) is None and (why := _damage(store, trial_id)) is not None:
            store.set_aside(trial_id, why)
            recovered.set_aside[trial_id] = why
    store.save_index()
    current = store.current_attempts()
    for folder, started in list(outbox.attempts(store.outbox)):
        ranks = outbox.finished_ranks(folder, started.spec.resources.ranks)
        for number, member in enumerate(started.members):
            trial_id = member.spec.trial_id
            if (done := store.read(trial_id)) is not None:
                store.drop_checkpoints(done)
                continue  # The driver died after it had written the record, before it cleared the outbox.
            if current.get(trial_id) != started.attempt.attempt_id:
                store.log("stale", trial_id=trial_id, attempt=started.attempt.attempt_id)
                continue
            result, again = _result(member, number, ranks)
            files = outbox.member_files(outbox.payload(folder), number)
            if again:
                store.keep_lost(result, files)
            else:
                recovered.committed.append(store.commit(result, files, outbox.member_prefix(number)))
        shutil.rmtree(folder)
    shutil.rmtree(store.outbox, ignore_errors=True)
    return recovered


def _result(
    member: outbox.StartedAttempt, number: int, ranks: Mapping[int, outbox.FinishedRank] | None
) -> tuple[TrialResult, bool]:
    """The record of a member of a launch, and whether its trial has to be tried again."""
    if ranks is None:
        lost = Failed(reason="driver_lost", phase=None, rank=None, message="the driver died while it ran")
        return member.result(lost, None, 0.0, None), True
    report = outbox.merged({rank: finished.report for rank, finished in ranks.items()})
    outcome = report.member_outcome(number)
    # Somebody may have set a clock between the two readings.
    seconds = max(0.0, max(finished.finished_at for finished in ranks.values()) - member.started_at)
    result = member.result(outcome, report.provenance, seconds, None, report.shared_seconds)
    again = RetryPolicy().tries_again(outcome, member.attempt.earlier_reasons, bool(member.other_members))
    return result, again


def _damage(store: Store, trial_id: str) -> str | None:
    """What is wrong with a record or its files. An intact record enters the index, so that it is not read again."""
    before = store.index.stamps(trial_id)
    try:
        record = store.read(trial_id)
    except CorruptRecordError as error:
        return str(error)
    if record is None:
        return None
    if record.content_sha256 is None:  # Old records have no checksum to compare with.
        store.index.add(record, before)
        return None
    folder = store.trials / trial_id
    stamps = store.index.stamps(trial_id, list(record.files))
    names = [name for name in record.files if (folder / name).stat().st_size <= CHECKED_BYTES]
    if damaged := damaged_files(folder, record, names):
        return f"{folder}: {', '.join(damaged)} not as they were committed"
    store.index.add(record, (*before, *stamps[1:]))
    return None
