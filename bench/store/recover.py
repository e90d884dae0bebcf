"""What a driver does with what an earlier one left behind: finished attempts are committed, interrupted ones noted."""

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
    """What was found."""

    committed: list[TrialResult] = field(default_factory=list)
    set_aside: dict[str, str] = field(default_factory=dict)
    """Trial id to what is wrong with its record."""


def recover(store: Store) -> Recovered:
    """Put a sweep's folder in order before anything runs.

    Records that are torn or were changed are set aside, so that their trials run again; those that the index holds, as
    they were when they were last found right, are not read. Attempts that had finished when
    the driver died are committed; of those that had not, the logs are kept. What an attempt left that is not the
    current one is not looked at.
    """
    found = Recovered()
    there = store.trial_ids()
    store.index.keep_only(there)
    for trial_id in there:
        if store.index.known(trial_id) is None and (why := _damage(store, trial_id)) is not None:
            store.set_aside(trial_id, why)
            found.set_aside[trial_id] = why
    store.save_index()
    current = store.current_attempts()
    for folder, started in list(outbox.attempts(store.outbox)):
        ranks = outbox.finished_ranks(folder, started.spec.resources.ranks)
        for number, member in enumerate(started.members):
            trial_id = member.spec.trial_id
            if store.has(trial_id):
                store.drop_checkpoints(trial_id)
                continue  # The crash came between the record and the clearing of the outbox.
            if current.get(trial_id) != started.attempt.attempt_id:
                store.log("stale", trial_id=trial_id, attempt=started.attempt.attempt_id)
                continue
            result, again = _result(member, number, ranks)
            files = outbox.member_files(outbox.payload(folder), number)
            if again:
                store.keep_lost(result, files)
            else:
                found.committed.append(store.commit(result, files, outbox.member_prefix(number)))
        shutil.rmtree(folder)
    shutil.rmtree(store.outbox, ignore_errors=True)
    return found


def _result(
    member: outbox.StartedAttempt, number: int, ranks: Mapping[int, outbox.FinishedRank] | None
) -> tuple[TrialResult, bool]:
    """The record of one of the trials of a launch, and whether it has to be made again."""
    if ranks is None:
        lost = Failed(reason="driver_lost", phase=None, rank=None, message="the driver died while it ran")
        return member.result(lost, None, 0.0, None), True
    report = outbox.merged({rank: finished.report for rank, finished in ranks.items()})
    outcome = report.of_member(number)
    # Two readings of clocks which somebody may have set in between.
    seconds = max(0.0, max(finished.finished_at for finished in ranks.values()) - member.started_at)
    result = member.result(outcome, report.provenance, seconds, None, report.shared_seconds)
    again = RetryPolicy().tries_again(outcome, member.attempt.earlier_reasons, bool(member.companions))
    return result, again


def _damage(store: Store, trial_id: str) -> str | None:
    """What is wrong with a record and its files. What is right is known from now on, as long as nobody touches it."""
    before = store.index.stamps(trial_id)
    try:
        record = store.read(trial_id)
    except CorruptRecordError as error:
        return str(error)
    if record is None:
        return None
    if record.content_sha256 is None:  # From before records had checksums: there is nothing to compare with.
        store.index.add(record, before)
        return None
    folder = store.trials / trial_id
    stamps = store.index.stamps(trial_id, list(record.files))
    names = [name for name in record.files if (folder / name).stat().st_size <= CHECKED_BYTES]
    if damaged := damaged_files(folder, record, names):
        return f"{folder}: {', '.join(damaged)} not as they were committed"
    store.index.add(record, (*before, *stamps[1:]))
    return None
