"""What a launcher does: turn an attempt at a trial into an outcome on some machines. Imports neither torch nor ray.

A launcher is one file with two classes: a subclass of :class:`Launcher` (or of
:class:`bench.launch.hosts.HostLauncher`, where a host on each machine starts the ranks), and one of
:class:`LauncherOptions`, which makes it as the command line says. Its name stands in one line of
:data:`bench.launch.choose.LAUNCHERS`. What subclasses implement or may override has no underscore.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bench.launch.capacity import Cluster, Need, Seat
from bench.plugins.source import PluginSource
from bench.schema.record import Attempt, Outcome, Placement, Provenance, outcome_of_member
from bench.schema.trial import JsonDict, Spec, TrialSpec
from bench.store.outbox import StartedAttempt, open_attempt

StopReason = Literal["timed_out", "cancelled"]
# Processes that have not ended by then are left to their keeper, which ends them when this process is gone.
CLOSE_SECONDS = 60.0
NOTHING_LOST = "Nothing is lost: finished trials are kept, and the same command goes on"


class NoMachinesError(RuntimeError):
    """There is no machine to run trials on now. This is no result of a trial, so that no record is made."""


@dataclass(frozen=True)
class Progress:
    """A sign of a rank: it has begun a phase, made a step, or is alive."""

    trial_id: str
    rank: int
    data: JsonDict


@dataclass(frozen=True)
class Ended:
    """The processes of an attempt have ended. ``files`` are on this machine, and the store takes them."""

    trial_id: str
    attempt_id: str
    outcome: Outcome
    provenance: Provenance | None
    seconds: float
    files: Sequence[Path] = ()
    placement: Placement | None = None
    other_outcomes: Sequence[Outcome] = ()  # of the members after the first; none if the launch failed as a whole
    shared_seconds: float = 0.0  # of the phases that ran once for all of them

    def member_outcome(self, number: int) -> Outcome:
        """The outcome of a member of the launch."""
        return outcome_of_member(number, self.outcome, self.other_outcomes)


@dataclass
class Running:
    """An attempt that a launcher has started."""

    started: StartedAttempt
    outbox: Path
    need: Need
    seats: list[Seat]
    stop_reason: StopReason | None = None
    memory_bytes: int = 0  # of its largest rank, as last heard
    since: float = field(default_factory=time.monotonic)  # a clock that nobody can set
    inbox: queue.Queue[JsonDict] = field(default_factory=queue.Queue)

    @property
    def spec(self) -> TrialSpec:
        return self.started.spec

    @property
    def attempt(self) -> Attempt:
        return self.started.attempt

    @property
    def trial_id(self) -> str:
        return self.spec.trial_id

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since


class Launcher(ABC):
    """Runs trials.

    A subclass must implement :meth:`warm`, :meth:`launch` and :meth:`close`. It may override :meth:`check`,
    :meth:`shortage`, :meth:`await_machines`, :meth:`reserve`, :meth:`stop` and :meth:`poll`, whose defaults are right
    for machines that are always there. It must keep two promises. Every attempt that it launches puts exactly one
    :class:`Ended` into :attr:`events`, after all its processes have ended. When the driver has died, in whatever way,
    everything that it has started ends too.

    Args:
        cluster: The machines that it may use.
        outbox: Holds a folder for each attempt, until the store takes its files.
    """

    name: str  # written into records

    def __init__(self, cluster: Cluster, outbox: Path) -> None:
        self.cluster = cluster
        self.outbox = outbox
        self.running: dict[str, Running] = {}
        self.events: queue.Queue[Progress | Ended] = queue.Queue()

    @abstractmethod
    def warm(self, spec: TrialSpec) -> None:
        """Get ready for a trial like this one, while the driver does something else."""

    @abstractmethod
    def launch(self, run: Running) -> None:
        """Start an attempt's ranks, without waiting for them.

        The ranks write into ``run.outbox``, or the launcher copies their files there when they have ended. Put each
        sign of them into :attr:`events` as :class:`Progress`, and an :class:`Ended` when they are gone. End an attempt
        whose ``run.stop_reason`` is set.
        """

    @abstractmethod
    def close(self) -> None:
        """End everything that this launcher started, within about :data:`CLOSE_SECONDS`, if a machine is silent too."""

    def check(self, trials: Sequence[TrialSpec]) -> None:  # noqa: B027 - there may be nothing to look at
        """Check, before the first trial starts, that all machines have the files and modules of these trials.

        Raises:
            ConfigError: A machine lacks one. The message names both.
        """

    def shortage(self, spec: TrialSpec) -> str | None:
        """Why a trial can never run here; None if it can run, now or when lost machines come back."""
        return self.cluster.shortage(spec)

    def await_machines(self, spec: TrialSpec) -> None:  # noqa: B027 - this machine does not go away
        """Ask for machines for a trial that waits while no trial runs. Called again and again until it can start.

        Raises:
            NoMachinesError: No machine that could hold it has come in time.
        """

    def reserve(self, spec: TrialSpec) -> list[Seat] | None:
        """Take seats for a trial beside those that run now, until it ends; None if there is no room."""
        return self.cluster.seat(spec.trial_id, self.cluster.need(spec))

    def start(self, started: StartedAttempt, seats: list[Seat]) -> None:
        """Start an attempt on its seats; :meth:`poll` returns its events. Override :meth:`launch` instead."""
        folder = open_attempt(self.outbox, started)
        run = Running(started, folder, self.cluster.need(started.spec), seats)
        self.running[run.trial_id] = run
        self.launch(run)

    def stop(self, trial_id: str, reason: StopReason) -> None:
        """Ask a running trial to end. Its Ended event follows."""
        self.running[trial_id].stop_reason = reason

    def poll(self, timeout_seconds: float) -> list[Progress | Ended]:
        """Return the events since the last call, after waiting at most so long for the first one. Frees seats.

        The driver calls it again and again, so that an override can look after machines here. It then calls this one.
        """
        events: list[Progress | Ended] = []
        with contextlib.suppress(queue.Empty):
            events.append(self.events.get(timeout=timeout_seconds))
            while True:
                events.append(self.events.get_nowait())
        return [self._settled(event) if isinstance(event, Ended) else event for event in events]

    def _settled(self, event: Ended) -> Ended:
        run = self.running.get(event.trial_id)
        if run is None or run.attempt.attempt_id != event.attempt_id:
            return event  # of an attempt that was given up, whose seats belong to another one now
        del self.running[event.trial_id]
        placement = Placement(
            nodes=[seat.node_id for seat in run.seats],
            gpus=[list(seat.gpus) for seat in run.seats],
            exclusive=run.spec.resources.exclusive,
            co_tenants=self.cluster.release(event.trial_id),
        )
        return dataclasses.replace(event, placement=placement)


class LauncherOptions(Spec):
    """The options of a launcher, as the command line gives them. They make the launcher. Imports neither torch nor ray.

    Each field is an option of the same name: ``--address``, or for those that have no option of their own
    ``--launcher-option name=value``. An option that is no field is refused, as it would have no effect.
    """

    @abstractmethod
    def make(self, outbox: Path, plugins: Sequence[PluginSource]) -> Launcher:
        """Make the launcher.

        Args:
            outbox: Holds a folder for each attempt, until the store takes its files.
            plugins: Sources that ranks must be able to import besides ``bench`` and ``methods``. Processes on this
                machine find them through ``PYTHONPATH``.

        Raises:
            ConfigError: The machines cannot be used as the options say.
        """
