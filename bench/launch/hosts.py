"""Runs attempts on hosts of rank processes, each in a thread that watches its ranks. Knows no Ray."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bench.launch.launcher import CLOSE_SECONDS, Ended, Launcher, Progress, Running
from bench.launch.rank_host import LOOPBACK
from bench.measure.provenance import sources_sha256
from bench.rank.environment import SEAT_VARIABLE
from bench.rank.process import RankJob
from bench.schema.record import Failed, RankReport, Reason
from bench.schema.trial import JsonDict, TrialSpec
from bench.schema.validation import ConfigError
from bench.store.outbox import checkpoints_beside, finished_ranks, log_name, merged, payload

LOG_TAIL_LINES = 30
# How long a rank may take from the start of its process to its first sign of life, imports included.
START_TIMEOUT_SECONDS = 300.0
POLL_SECONDS = 0.5
# When a rank is lost, the others fail too. A report that tells the true reason is waited for so long.
PEERS_SECONDS = 20.0


class Host(Protocol):
    """What :class:`bench.launch.rank_host.RankHost` does, wherever it is."""

    def warm(self, environment: dict[str, str]) -> None: ...

    def start(self, attempt_id: str, job: JsonDict, environment: dict[str, str]) -> None: ...

    def send(self, attempt_id: str, rank: int, line: str) -> None: ...

    def poll(self, seconds: float) -> list[JsonDict]: ...

    def end(self, attempt_id: str) -> bool: ...

    def files(self, attempt_id: str) -> dict[str, int]: ...

    def read(self, attempt_id: str, name: str, offset: int) -> bytes: ...

    def clear(self, attempt_id: str) -> None: ...

    def missing(self, paths: Sequence[str], modules: Sequence[str]) -> list[str]: ...

    def address(self) -> str: ...


class HostLost(Exception):
    """A machine, or our process on it, is gone."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class HostLauncher(Launcher):
    """Starts ranks through hosts, follows them, and leaves no process behind.

    A subclass must implement :meth:`host`, and start for each host a thread that runs :meth:`receive`. It may override
    :meth:`prepare` and :meth:`release` if others compete for the machines, and the methods that :class:`Launcher`
    lists.

    Every thread ends by an event, because otherwise its trial would seem to run for ever.
    """

    closing = False  # True: hosts are expected to go

    def launch(self, run: Running) -> None:
        threading.Thread(target=self._watch, args=(run,), name=run.trial_id, daemon=True).start()

    def warm(self, spec: TrialSpec) -> None:
        """Make all machines import the libraries, while the driver goes on."""
        need = self.cluster.need(spec)
        environment = rank_environment(need.cpus_per_rank, ["0"] if need.gpus_per_rank else [])
        for machine in self.cluster.machines:
            if machine.most_ranks(need):
                with contextlib.suppress(HostLost):
                    self.host(machine.node_id).warm(environment)

    def look_at_hosts(self, trials: Sequence[TrialSpec]) -> None:
        """Ask all machines for the files and modules of these trials. An override of :meth:`check` can call it.

        Raises:
            ConfigError: One of them lacks something.
        """
        paths = sorted({str(path.absolute()) for trial in trials for path in trial.local_paths})
        if any(trial.checkpoint_every_steps is not None for trial in trials):
            paths.append(str(self.outbox.parent.resolve()))
        targets = {target for trial in trials for target in (trial.method.target, trial.task.target)}
        modules = sorted({target.partition(":")[0] for target in targets})
        for machine in self.cluster.machines:
            if not machine.cpus:
                continue
            with contextlib.suppress(HostLost):
                if lacking := self.host(machine.node_id).missing(paths, modules):
                    raise ConfigError(
                        f"node {self.title(machine.node_id)} lacks {', '.join(lacking)}; "
                        "all nodes need models and data under the same path as here, e.g. on shared storage, and what "
                        "plugins import"
                    )

    def title(self, node_id: str) -> str:
        """The name of a node for people."""
        return node_id

    @abstractmethod
    def host(self, node_id: str) -> Host:
        """The host of a node.

        Raises:
            HostLost: The node is gone.
        """

    @abstractmethod
    def prepare(self, run: Running) -> list[list[str]] | None:
        """Claim a trial's seats on the machines.

        Returns:
            The GPUs that each rank may see, as ``CUDA_VISIBLE_DEVICES`` names them; None if the trial was stopped.

        Raises:
            HostLost: One of the nodes is gone, or is not ready in time.
        """

    def release(self, run: Running) -> None:
        """Give the seats back. Called even if :meth:`prepare` has failed."""

    def receive(self, node_id: str, host: Host) -> None:
        """Pass on what the ranks on a host say, until the host or this launcher ends. A thread runs it."""
        try:
            while not self.closing or self.running:
                messages = host.poll(POLL_SECONDS * 10)
                by_attempt = {run.attempt.attempt_id: run for run in list(self.running.values())}
                for message in messages:
                    if (owner := by_attempt.get(message["attempt_id"])) is not None:
                        owner.inbox.put(message)
        except HostLost as lost:
            self._lose(node_id, lost.reason, str(lost))
        except Exception as error:  # noqa: BLE001 - trials on the host must end by an event
            self._lose(node_id, "worker_lost", f"node {node_id} is not heard: {type(error).__name__}: {error}")

    def _lose(self, node_id: str, reason: Reason, why: str) -> None:
        """Tell the trials on a node that it is gone. If its memory ran out, the largest of them is to blame."""
        runs = [run for run in list(self.running.values()) if any(seat.node_id == node_id for seat in run.seats)]
        for run in sorted(runs, key=lambda run: run.memory_bytes, reverse=True):
            run.inbox.put({"lost": why, "reason": reason})
            reason = "worker_lost" if reason == "out_of_memory" else reason

    def close(self) -> None:
        for trial_id in list(self.running):
            self.stop(trial_id, "cancelled")
        deadline = time.monotonic() + CLOSE_SECONDS
        while self.running and time.monotonic() < deadline:
            self.poll(0.1)
        self.closing = True

    def _watch(self, run: Running) -> None:
        try:
            ended = self._ended(run)
        except Exception as error:  # noqa: BLE001 - the attempt must end by an event
            failed = _failed(*_launcher_failure(error)).member_outcome(0)
            ended = Ended(run.trial_id, run.attempt.attempt_id, failed, None, run.seconds)
        self.events.put(ended)

    def _ended(self, run: Running) -> Ended:
        """Run an attempt to its end."""
        try:
            report = self._run(run)
        except HostLost as lost:
            report = _failed(lost.reason, str(lost))
        except Exception as error:  # noqa: BLE001 - reports that the ranks have written still count
            report = _failed(*_launcher_failure(error))
        if isinstance(report.outcome, Failed) and report.outcome.is_symptom:
            # A rank may have died after it had written everything.
            finished = finished_ranks(run.outbox, run.need.ranks)
            if finished is not None:
                report = merged({rank: left.report for rank, left in finished.items()})
        outcome = report.member_outcome(0)
        if isinstance(outcome, Failed):
            outcome = outcome.model_copy(update={"log_tail": log_tail(run.outbox, outcome.rank)})
        return Ended(
            run.trial_id,
            run.attempt.attempt_id,
            outcome,
            report.provenance,
            run.seconds,
            payload(run.outbox),
            other_outcomes=report.other_outcomes,
            shared_seconds=report.shared_seconds,
        )

    def _run(self, run: Running) -> RankReport:
        try:
            gpus = self.prepare(run)
            if gpus is None:
                return RankReport(outcome=stopped(run), provenance=None)
            ranks = _Ranks(run, [self.host(seat.node_id) for seat in run.seats])
            try:
                ranks.start(gpus)
                return ranks.follow(self)
            finally:
                ranks.end()
        finally:
            self.release(run)


class _Ranks:
    """The ranks of one attempt."""

    def __init__(self, run: Running, hosts: Sequence[Host]) -> None:
        self.run = run
        self.hosts = hosts  # in the order of ranks
        self.attempt_id = run.attempt.attempt_id
        self.reports: dict[int, RankReport] = {}
        self.phases: dict[int, str] = {}
        self._heard: dict[int, float] = {}
        self._started = time.monotonic()

    def start(self, gpus: Sequence[Sequence[str]]) -> None:
        spans_nodes = len({seat.node_id for seat in self.run.seats}) > 1
        host = self.hosts[0].address() if spans_nodes else LOOPBACK
        checkpoints = None
        if self.run.spec.checkpoint_every_steps is not None:
            checkpoints = str(checkpoints_beside(self.run.outbox.parent.parent.resolve(), self.run.trial_id))
        for rank, visible in enumerate(gpus):
            job = RankJob(
                spec=self.run.spec.with_absolute_paths(),
                other_members=[member.with_absolute_paths() for member in self.run.started.other_members],
                rank=rank,
                outbox=str(self.run.outbox.resolve()),
                threads=self.run.need.cpus_per_rank,
                host=host,
                driver_code_sha256=sources_sha256(),
                checkpoints=checkpoints,
            )
            environment = rank_environment(self.run.need.cpus_per_rank, visible)
            self.hosts[rank].start(self.attempt_id, job.model_dump(mode="json"), environment)

    def follow(self, launcher: HostLauncher) -> RankReport:
        """Wait until all ranks have reported, or until one has failed for a known reason."""
        give_up: float | None = None
        while len(self.reports) < len(self.hosts) and (give_up is None or time.monotonic() < give_up):
            if self.run.stop_reason:
                return RankReport(outcome=stopped(self.run), provenance=None)
            self._notice_silence()
            with contextlib.suppress(queue.Empty):
                self._hear(self.run.inbox.get(timeout=POLL_SECONDS), launcher)
            failures = [report.outcome for report in self.reports.values() if isinstance(report.outcome, Failed)]
            if not all(failure.is_symptom for failure in failures):
                break
            if failures and give_up is None:
                give_up = time.monotonic() + PEERS_SECONDS
        return merged(self.reports)

    def _hear(self, message: JsonDict, launcher: HostLauncher) -> None:
        if "lost" in message:
            raise HostLost(message["reason"], message["lost"])
        rank = message["rank"]
        self._heard[rank] = time.monotonic()
        if "port" in message:
            for other in range(1, len(self.hosts)):
                self.hosts[other].send(self.attempt_id, other, str(message["port"]))
        elif "report" in message:
            self.reports[rank] = RankReport.model_validate(message["report"])
        elif "exit" in message:
            if rank not in self.reports:
                self._fail(*_lost(message), rank)
        else:
            data: JsonDict = message.get("progress") or message["beat"]
            if "phase" in data:
                self.phases[rank] = data["phase"]
            self.run.memory_bytes = max(self.run.memory_bytes, data.get("memory_bytes", 0))
            member = self.run.started.members[data.pop("member", 0)]
            launcher.events.put(Progress(member.spec.trial_id, rank, data))

    def _notice_silence(self) -> None:
        """Let ranks fail that have been silent for too long."""
        now = time.monotonic()
        for rank in range(len(self.hosts)):
            if rank in self.reports:
                continue
            if rank not in self._heard:
                if now - self._started > START_TIMEOUT_SECONDS:
                    self._fail("start_timed_out", f"did not start within {START_TIMEOUT_SECONDS:g} s", rank)
            elif now - self._heard[rank] > (limit := self.run.spec.resources.hang_seconds):
                self._fail("hung", f"gave no sign of life for {limit:g} s", rank)

    def _fail(self, reason: Reason, what: str, rank: int) -> None:
        failed = Failed(reason=reason, phase=self.phases.get(rank), rank=rank, message=f"rank {rank} {what}")
        self.reports[rank] = RankReport(outcome=failed, provenance=None)

    def end(self) -> None:
        """End all processes of the attempt, and copy its files to this machine."""
        for host in dict.fromkeys(self.hosts):
            try:
                host.end(self.attempt_id)
                _fetch(host, self.attempt_id, self.run.outbox)
                host.clear(self.attempt_id)
            except HostLost:
                continue  # The processes and files on this host are gone with it.


def _lost(message: JsonDict) -> tuple[Reason, str]:
    """Why a process ended without a report."""
    code = message["exit"]
    if message.get("out_of_memory"):
        return "out_of_memory", "was killed by the system, which had run out of memory"
    if code is None:
        return "worker_lost", f"disappeared{message.get('why', '')}"
    how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    return "worker_lost", f"{how} without a report"


def _fetch(host: Host, attempt_id: str, destination: Path) -> None:
    """Copy the files of an attempt to this machine, in pieces, unless both share the storage."""
    for name, size in host.files(attempt_id).items():
        with (destination / Path(name).name).open("wb") as file:
            while file.tell() < size:
                piece = host.read(attempt_id, name, file.tell())
                if not piece:
                    break
                file.write(piece)


def rank_environment(threads: int, gpus: Sequence[str]) -> dict[str, str]:
    """Environment variables of a rank that the launcher sets."""
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(gpus),
        "HIP_VISIBLE_DEVICES": ",".join(gpus),  # ROCm heeds it first, and Ray or a shell may have set it for many ranks
        SEAT_VARIABLE: ",".join(gpus),
        **({} if gpus else {"DS_ACCELERATOR": "cpu"}),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",  # else importing NumPy would start threads before a fork
        "PYTHONUNBUFFERED": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # counts GPUs without starting CUDA, which does not survive a fork
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _launcher_failure(error: Exception) -> tuple[Reason, str]:
    """The reason of a failure in the launcher. An error of files or networks is no fault of the trial."""
    reason: Reason = "worker_lost" if isinstance(error, OSError) else "error"
    return reason, f"the launcher failed: {type(error).__name__}: {error}"


def _failed(reason: Reason, message: str) -> RankReport:
    return RankReport(outcome=Failed(reason=reason, phase=None, rank=None, message=message), provenance=None)


def stopped(run: Running) -> Failed:
    """The outcome of a trial that was stopped."""
    if run.stop_reason == "timed_out":
        message = f"longer than resources.timeout_seconds: {run.spec.resources.timeout_seconds:g}"
        return Failed(reason="timed_out", phase=None, rank=None, message=message)
    return Failed(reason="cancelled", phase=None, rank=None, message="cancelled")


def log_tail(outbox: Path, rank: int | None) -> str | None:
    """The last lines of a rank's log; of rank 0 if the failure names no rank."""
    path = outbox / log_name(rank or 0)
    if not path.is_file():
        return None
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]) or None
