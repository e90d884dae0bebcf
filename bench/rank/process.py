"""One rank as a process of its own. It reads its job from standard input and writes reports to a pipe.

Each line of the pipe is a JSON object with one of the keys ``port`` (of the rendezvous that rank 0 has opened),
``progress``, ``beat`` (the process is alive) and ``report``. The process ends when its standard input closes, because
the driver is gone then. Standard output and error go into its log.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil
from pydantic import Field

from bench.rank.rendezvous import join_store, open_store
from bench.schema.trial import JsonDict, Spec, TrialSpec
from bench.store.outbox import payload, write_report

if TYPE_CHECKING:
    from bench.schema.record import RankReport

PROGRESS_SECONDS = 0.5
BEAT_SECONDS = 2.0
STORE_TIMEOUT_SECONDS = 1800


class RankJob(Spec):
    """Everything that a rank process needs, as JSON."""

    spec: TrialSpec
    other_members: list[TrialSpec] = Field(default_factory=list, description="trials that share the launch")
    rank: int
    outbox: str
    threads: int
    host: str = "127.0.0.1"  # on which rank 0 opens the rendezvous
    driver_code_sha256: str
    checkpoints: str | None = None  # their folder; None if the trial makes none

    @property
    def ranks(self) -> int:
        return self.spec.resources.ranks


class Reports:
    """Sends reports to the driver: progress of a trial when a phase begins, and else at most twice a second."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._last_progress: dict[int, float] = {}

    def send(self, message: JsonDict) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]

    def progress(self, event: JsonDict) -> None:
        now, member = time.monotonic(), event.get("member", 0)
        if "phase" in event or now - self._last_progress.get(member, 0.0) >= PROGRESS_SECONDS:
            self._last_progress[member] = now
            self.send({"progress": event})

    def beat(self) -> None:
        """Report again and again that this process is alive, and how much memory it uses."""
        while True:
            self.send({"beat": {"memory_bytes": memory_bytes()}})
            time.sleep(BEAT_SECONDS)


def serve(jobs: IO[str], descriptor: int) -> None:
    """Read one job, run it, report."""
    job = RankJob.model_validate_json(jobs.readline())
    reports = Reports(descriptor)
    threading.Thread(target=reports.beat, daemon=True).start()
    if job.rank == 0:
        store = open_store(job.host, STORE_TIMEOUT_SECONDS)
        reports.send({"port": store.port})
    else:
        store = join_store(job.host, int(jobs.readline()), STORE_TIMEOUT_SECONDS)
    threading.Thread(target=_end_with_driver, args=(jobs,), daemon=True).start()
    report = _run(job, store, reports)
    outbox = Path(job.outbox)
    # Rank 0 has written all files but the logs, which all ranks still write to.
    names = [path.name for path in payload(outbox) if path.suffix != ".log"] if job.rank == 0 else []
    write_report(outbox, job.rank, report, names)
    reports.send({"report": report.model_dump(mode="json")})


def _run(job: RankJob, store: Any, reports: Reports) -> RankReport:
    from bench.rank.context import RankContext
    from bench.rank.trial import run_rank

    context = RankContext(
        rank=job.rank,
        ranks=job.ranks,
        local_rank=0,  # the only GPU that this process sees
        store=store,
        outbox=Path(job.outbox),
        driver_code_sha256=job.driver_code_sha256,
        threads=job.threads,
        progress=reports.progress,
        checkpoints=Path(job.checkpoints) if job.checkpoints is not None else None,
    )
    return run_rank(job.spec, context, job.other_members)


def memory_bytes() -> int:
    """What this process uses now: of its GPU if it has begun to use one, else of the machine's memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def _end_with_driver(jobs: IO[str]) -> None:
    jobs.read()
    os._exit(1)


def main() -> None:
    """Entry of a process that was started for one rank alone; the argument is the descriptor of the pipe."""
    import_libraries()
    serve(sys.stdin, int(sys.argv[1]))
    # Threads of the process group must not keep a rank alive that has reported.
    os._exit(0)


# What every rank imports sooner or later, here and deep in the libraries, before it is known which trial it will run.
LIBRARIES = (
    "bench.rank.trial",
    "datasets",
    "deepspeed.module_inject",
    "deepspeed.runtime.bf16_optimizer",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.stage_1_and_2",
    "rouge_score.rouge_scorer",
    "sacrebleu.tokenizers.tokenizer_13a",
    "scipy.io",
    "setuptools",
    "torch.distributed.tensor",
    "torch.profiler",
    "transformers.generation",
    "transformers.loss.loss_utils",
    "transformers.masking_utils",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.processing_utils",
)


def import_libraries() -> None:
    """Import what takes most of a rank's start."""
    for name in LIBRARIES:
        importlib.import_module(name)
    # Collections in a rank need not look at what was imported, nor touch, and so copy, what a fork shares with others.
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main()
