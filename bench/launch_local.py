"""Ranks as local processes: tests, laptops, debugging. No Ray."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

from bench.keeper import Kept
from bench.launch import Launcher, Machine, Running, log_name, merged, rank_environment, stopped
from bench.provenance import SOURCE_ROOT, code_sha256
from bench.rank_process import RankJob
from bench.record import Failed, Outcome, Provenance, RankReport

Message = tuple[int, dict[str, Any] | None]  # rank and what it sent; None when its output has closed


class LocalLauncher(Launcher):
    """Starts the ranks of a trial on this machine."""

    name = "local"

    def __init__(self, scratch: Path, machine: Machine | None = None) -> None:
        super().__init__(machine or this_machine(), scratch)
        self._free_gpus = list(range(self.machine.gpus))

    def close(self) -> None:
        for trial_id in list(self.running):
            self.stop(trial_id, "cancelled")
        while self.running:
            self.poll(1.0)

    def _run(self, run: Running) -> tuple[Outcome, Provenance | None]:
        gpus = [self._free_gpus.pop() for _ in range(run.share.gpus)]
        kept: list[Kept] = []
        try:
            for rank in range(run.spec.resources.ranks):
                kept.append(_start_rank(run, rank, gpus[rank] if gpus else None))
            return self._follow(run, [each.process for each in kept])
        finally:
            for each in kept:
                each.end()
                for stream in (each.process.stdin, each.process.stdout):
                    _close(stream)
            self._free_gpus.extend(gpus)

    def _follow(self, run: Running, processes: list[subprocess.Popen[str]]) -> tuple[Outcome, Provenance | None]:
        messages: queue.Queue[Message] = queue.Queue()
        for rank, process in enumerate(processes):
            threading.Thread(target=_read, args=(rank, process, messages), daemon=True).start()
        reports: dict[int, RankReport] = {}
        while len(reports) < len(processes):
            if run.stop_reason:
                return stopped(run), None
            try:
                rank, message = messages.get(timeout=0.5)
            except queue.Empty:
                continue
            if message is None:
                if rank not in reports:
                    return _lost(rank, processes[rank].wait()), None
            elif "port" in message:
                for other in processes[1:]:
                    _send(other, str(message["port"]))
            elif "progress" in message:
                self.report_progress(run, rank, message["progress"])
            else:
                reports[rank] = RankReport.model_validate(message["report"])
                if isinstance(reports[rank].outcome, Failed):
                    break
        return merged(reports)


def this_machine() -> Machine:
    """Cores and GPUs that this process may use."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cpus=cpus, gpus=torch.cuda.device_count())


def _start_rank(run: Running, rank: int, gpu: int | None) -> Kept:
    environment = {**os.environ, **rank_environment(run.threads)}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
    environment["CUDA_VISIBLE_DEVICES"] = "" if gpu is None else _visible_gpu(gpu)
    with (run.outbox / log_name(rank)).open("ab") as log:
        command = [sys.executable, "-m", "bench.rank_process"]
        kept = Kept(command, environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    job = RankJob(
        spec=run.spec,
        rank=rank,
        outbox=str(run.outbox),
        threads=run.threads,
        driver_code_sha256=code_sha256(),
    )
    _send(kept.process, job.model_dump_json())
    return kept


def _visible_gpu(index: int) -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)


def _send(process: subprocess.Popen[str], line: str) -> None:
    if process.stdin is None:
        raise RuntimeError("the rank was started without a pipe")
    try:
        process.stdin.write(line + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # It is dead already; the end of its output says so.


def _read(rank: int, process: subprocess.Popen[str], messages: queue.Queue[Message]) -> None:
    if process.stdout is None:
        raise RuntimeError("the rank was started without a pipe")
    try:
        for line in process.stdout:
            messages.put((rank, json.loads(line)))
    except ValueError:
        pass  # A torn last line, or the pipe was closed after the trial's end.
    messages.put((rank, None))


def _close(stream: IO[str] | None) -> None:
    try:
        if stream is not None:
            stream.close()
    except BrokenPipeError:
        pass


def _lost(rank: int, exit_code: int) -> Failed:
    how = f"was killed by signal {-exit_code}" if exit_code < 0 else f"exited with code {exit_code}"
    message = f"rank {rank} {how} without a report"
    return Failed(reason="worker_lost", phase=None, rank=rank, message=message)
