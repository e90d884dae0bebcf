"""Named points at which tests kill a process, to prove that a crash there loses nothing.

``TUNEOFF_CRASH_AT=commit.before_record`` kills the process when it first gets there, ``...:3`` when it gets there for
the third time. Ranks inherit the variable.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import Literal, get_args

CrashPoint = Literal[
    "start.before_journal",  # the attempt has an id, and nobody knows
    "start.after_journal",  # the journal knows, no process does
    "rank.before_report",  # trained, decoded and scored, but not written down
    "rank.after_step",  # of the last rank; within a training
    "rank.within_checkpoint",  # the pieces of all ranks are written, the file that names them is not
    "rank.after_checkpoint",  # within a training, which its retry continues
    "rank.after_report",  # in the outbox, and the driver does not know yet
    "commit.before_files",
    "commit.between_files",
    "commit.before_record",  # all files are in place
    "commit.before_rename",  # the record is written under its temporary name
    "commit.after_rename",  # the record is there, the journal does not know
    "commit.after_journal",  # the outbox still has it
    "commit.after_outbox",
    "lost.before_record",  # an attempt was lost, and nobody wrote it down
    "lost.after_record",
    "index.before_rename",  # what the index would say is written, and nobody has seen it
]
CRASH_POINTS: tuple[CrashPoint, ...] = get_args(CrashPoint)

_times: Counter[str] = Counter()


def reached(point: CrashPoint) -> None:
    """Kill this process if a test asks for it."""
    wanted = os.environ.get("TUNEOFF_CRASH_AT")
    if wanted is None:
        return
    name, _, time = wanted.partition(":")
    _times[point] += 1
    if name == point and _times[point] == int(time or 1):
        os.kill(os.getpid(), signal.SIGKILL)
