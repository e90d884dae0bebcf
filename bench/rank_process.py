"""One rank as a process of its own, for both launchers: output goes to the rank's log, reports go to the driver.

``python -m bench.rank_process`` is what the local launcher starts. It reads one job from standard input and writes one
JSON object a line to standard output. When standard input closes, the driver is gone, and the rank ends itself.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.launch import log_name
from bench.record import RankReport
from bench.spec import JsonDict, Spec, TrialSpec

PROGRESS_SECONDS = 0.5
STORE_TIMEOUT_SECONDS = 1800


class RankJob(Spec):
    """Everything a rank process needs, as JSON."""

    spec: TrialSpec
    rank: int
    outbox: str
    threads: int
    driver_code_sha256: str

    @property
    def ranks(self) -> int:
        return self.spec.resources.ranks


def open_store(host: str) -> Any:
    """The rendezvous of a trial's ranks, on a port that the system picks at the moment it is opened."""
    from datetime import timedelta

    from torch._C._distributed_c10d import TCPStore

    timeout = timedelta(seconds=STORE_TIMEOUT_SECONDS)
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)


def join_store(host: str, port: int) -> Any:
    """Another rank's view of the rendezvous."""
    from datetime import timedelta

    from torch._C._distributed_c10d import TCPStore

    timeout = timedelta(seconds=STORE_TIMEOUT_SECONDS)
    return TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)


def run_job(job: RankJob, store: Any, local_rank: int, send: Callable[[JsonDict], None]) -> RankReport:
    """Run a rank in this process; progress is sent when a phase begins, else at most twice a second."""
    from bench.worker import RankContext, run_rank

    last_sent = 0.0

    def progress(event: JsonDict) -> None:
        nonlocal last_sent
        now = time.monotonic()
        if "phase" in event or now - last_sent >= PROGRESS_SECONDS:
            last_sent = now
            send(event)

    context = RankContext(
        rank=job.rank,
        ranks=job.ranks,
        local_rank=local_rank,
        store=store,
        outbox=Path(job.outbox),
        driver_code_sha256=job.driver_code_sha256,
        threads=job.threads,
        progress=progress,
    )
    return run_rank(job.spec, context)


def redirect_output(job: RankJob) -> int:
    """Send this process's output, of native code too, to the rank's log. Returns a descriptor of the old output."""
    sys.stdout.flush()
    sys.stderr.flush()
    old_output = os.dup(1)
    log = os.open(Path(job.outbox) / log_name(job.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    return old_output


def _end_with_driver() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Entry of a process that the local launcher has started."""
    job = RankJob.model_validate_json(sys.stdin.readline())
    with os.fdopen(redirect_output(job), "w", buffering=1) as reports:

        def send(message: JsonDict) -> None:
            reports.write(json.dumps(message) + "\n")

        host = "127.0.0.1"
        if job.rank == 0:
            store = open_store(host)
            send({"port": store.port})
        else:
            store = join_store(host, int(sys.stdin.readline()))
        threading.Thread(target=_end_with_driver, daemon=True).start()
        report = run_job(job, store, 0, lambda event: send({"progress": event}))
        send({"report": report.model_dump(mode="json")})
    # Threads of the process group must not keep a rank alive that has reported.
    os._exit(0)


if __name__ == "__main__":
    main()
