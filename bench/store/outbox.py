"""The outbox: a folder for each attempt, in which its results wait until the driver has committed them.

The driver writes down which attempts it starts. Each rank writes its files and then, atomically, its report. If the
driver dies after the training, the next driver finds the results here. Imports neither torch nor ray.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AliasChoices, Field, ValidationError

from bench.schema.digests import sha256_of
from bench.schema.record import (
    Attempt,
    Failed,
    Fused,
    Outcome,
    Placement,
    Provenance,
    RankReport,
    Reason,
    TrialResult,
)
from bench.schema.trial import Spec, TrialSpec
from bench.store.crash_points import reached
from bench.store.files import sync_folder, write_atomically

START_FILE = "attempt.json"
REPORT_FILES = "report-*.json"
CHECKPOINTS_FOLDER = ".checkpoints"


class StartedAttempt(Spec):
    """What the driver knows of an attempt before any rank of it runs."""

    spec: TrialSpec
    sweep: str
    attempt: Attempt
    launcher: str
    started_at: float
    other_members: list[TrialSpec] = Field(
        default_factory=list,
        description="trials that share the launch",
        validation_alias=AliasChoices("other_members", "companions"),  # as it was called before 2026-11-30
    )

    @property
    def members(self) -> list[StartedAttempt]:
        """The attempt from the view of each member of the launch; the view of this trial comes first."""
        specs = [self.spec, *self.other_members]
        return [
            self.model_copy(update={"spec": spec, "other_members": [*specs[:number], *specs[number + 1 :]]})
            for number, spec in enumerate(specs)
        ]

    def result(
        self,
        outcome: Outcome,
        provenance: Provenance | None,
        seconds: float,
        placement: Placement | None,
        shared_seconds: float = 0.0,
    ) -> TrialResult:
        """The record of this attempt with its outcome."""
        others = [member.trial_id for member in self.other_members]
        return TrialResult(
            trial_id=self.spec.trial_id,
            sweep=self.sweep,
            spec=self.spec,
            outcome=outcome,
            attempt=self.attempt,
            launcher=self.launcher,
            started_at=datetime.fromtimestamp(self.started_at, UTC).isoformat(timespec="seconds"),
            total_seconds=seconds,
            provenance=provenance,
            placement=placement,
            fused=Fused(trials=others, shared_seconds=shared_seconds) if others else None,
        )


def new_attempt(
    spec: TrialSpec, sweep: str, launcher: str, earlier: Sequence[Reason], other_members: Sequence[TrialSpec] = ()
) -> StartedAttempt:
    """A new attempt at a trial, or at all members of a launch, with an id of its own."""
    attempt = Attempt(attempt_id=uuid.uuid4().hex, number=len(earlier) + 1, earlier_reasons=list(earlier))
    return StartedAttempt(
        spec=spec,
        sweep=sweep,
        attempt=attempt,
        launcher=launcher,
        started_at=time.time(),
        other_members=list(other_members),
    )


class FinishedRank(Spec):
    """What a rank leaves in the outbox when it is done."""

    report: RankReport
    files: dict[str, str]  # file name to sha256
    finished_at: float


def open_attempt(root: Path, started: StartedAttempt) -> Path:
    """Make the folder of an attempt. It need not survive a power cut before a rank has reported."""
    folder = root / started.spec.trial_id / started.attempt.attempt_id
    folder.mkdir(parents=True)
    if started.spec.checkpoint_every_steps is not None:
        checkpoints_beside(root, started.spec.trial_id).mkdir(parents=True, exist_ok=True)
    (folder / START_FILE).write_text(started.model_dump_json(), encoding="utf-8")
    return folder


def checkpoints_beside(outbox: Path, trial_id: str) -> Path:
    """The folder in which the ranks of a trial leave checkpoints for its retries."""
    return outbox.with_name(CHECKPOINTS_FOLDER) / trial_id


def write_report(folder: Path, rank: int, report: RankReport, names: list[str]) -> None:
    """Write the report of a rank, once all files that it names are written.

    Args:
        folder: Of the attempt.
        rank: Which one.
        report: Its outcome.
        names: Files in the folder that belong into the record.
    """
    reached("rank.before_report")
    for path in [folder / name for name in names] + list(folder.glob(START_FILE)):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder.parent)
    hashes = {name: sha256_of(folder / name) for name in names}
    finished = FinishedRank(report=report, files=hashes, finished_at=time.time())
    write_atomically(report_path(folder, rank), finished.model_dump_json())
    reached("rank.after_report")


def report_path(folder: Path, rank: int) -> Path:
    """Where a rank's report is."""
    return folder / REPORT_FILES.replace("*", str(rank))


def attempts(root: Path) -> Iterator[tuple[Path, StartedAttempt]]:
    """All attempts in the outbox, with their folders; one whose description is damaged is left out."""
    for path in sorted(root.glob(f"*/*/{START_FILE}")):
        try:
            yield path.parent, StartedAttempt.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError):
            continue


def finished_ranks(folder: Path, ranks: int) -> dict[int, FinishedRank] | None:
    """What the ranks of an attempt left; None if the attempt did not end, or if one of its files is damaged.

    It has ended when all ranks have reported, or when one has failed through the trial's own fault.
    """
    intact: dict[int, FinishedRank] = {}
    for rank in range(ranks):
        try:
            finished = FinishedRank.model_validate_json(report_path(folder, rank).read_text(encoding="utf-8"))
        except (OSError, ValidationError, UnicodeDecodeError):
            continue
        if all(_is_intact(folder / name, sha256) for name, sha256 in finished.files.items()):
            intact[rank] = finished
    outcomes = [finished.report.outcome for finished in intact.values()]
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    if any(failure.is_symptom for failure in failed) or (not failed and len(intact) < ranks):
        return None
    return intact


def _is_intact(path: Path, sha256: str) -> bool:
    return path.is_file() and sha256_of(path) == sha256


def payload(folder: Path) -> list[Path]:
    """The files of an attempt that belong into its record."""
    bookkeeping = {START_FILE, *(path.name for path in folder.glob(REPORT_FILES))}
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in files if path.name not in bookkeeping)


def member_prefix(number: int) -> str:
    """The beginning of file names of a member of a launch; empty for the first member."""
    return f"member-{number}." if number else ""


def member_files(files: Sequence[Path], number: int) -> list[Path]:
    """The files of one member of a launch, and the logs, which all members share."""
    prefixed = [path for path in files if re.match(r"member-\d+\.", path.name)]
    if number == 0:
        return [path for path in files if path not in prefixed]
    own = [path for path in prefixed if path.name.startswith(member_prefix(number))]
    return [*own, *(path for path in files if path.suffix == ".log")]


def log_name(rank: int) -> str:
    """File name of a rank's log."""
    return f"rank-{rank}.log"


def merged(reports: Mapping[int, RankReport]) -> RankReport:
    """The report that stands for all ranks: a failure if there is one, else that of rank 0.

    A failure through the trial's own fault comes before its symptoms on other ranks.
    """
    failed = [(report.outcome, report) for report in reports.values() if isinstance(report.outcome, Failed)]
    if failed:
        return min(failed, key=lambda pair: pair[0].is_symptom)[1]
    if reports[0].outcome is None:
        raise RuntimeError("rank 0 reported no outcome")
    return reports[0]
