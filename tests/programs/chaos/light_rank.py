"""A rank process that trains nothing: it says it is alive, waits, writes its files and reports, like a real one."""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from fakes import completed, provenance

from bench.rank.process import RankJob, Reports
from bench.schema.record import RankReport
from bench.store.outbox import START_FILE, StartedAttempt, payload, write_report


def main() -> None:
    job = RankJob.model_validate_json(sys.stdin.readline())
    reports = Reports(int(sys.argv[1]))
    threading.Thread(target=reports.beat, daemon=True).start()
    os.close(tempfile.mkstemp(prefix="of-a-rank-")[0])  # as libraries do that count on the end of the interpreter
    reports.progress({"phase": "train"})
    outbox = Path(job.outbox)
    start = outbox / START_FILE  # not there where the driver's storage is not shared
    if start.is_file() and StartedAttempt.model_validate_json(start.read_text()).attempt.number > 1:
        os.environ.pop("TUNEOFF_CRASH_AT", None)
    elif os.environ.get("LIGHT_DIES"):
        os.kill(os.getpid(), signal.SIGKILL)
    taken = bytearray(int(os.environ.get("LIGHT_BYTES", "0")))
    taken[:: mmap.PAGESIZE] = b"x" * len(taken[:: mmap.PAGESIZE])
    time.sleep(float(os.environ.get("LIGHT_SECONDS", "0.05")))
    while (gate := os.environ.get("LIGHT_GATE")) and not Path(gate).exists():
        time.sleep(0.02)
    for number in range(2 if job.rank == 0 else 0):
        (outbox / f"file-{number}.txt").write_text(f"{job.spec.trial_id} {number}\n")
    report = RankReport(outcome=completed() if job.rank == 0 else None, provenance=provenance())
    names = [path.name for path in payload(outbox) if path.suffix != ".log"] if job.rank == 0 else []
    write_report(outbox, job.rank, report, names)
    reports.send({"report": json.loads(report.model_dump_json())})


if __name__ == "__main__":
    main()
