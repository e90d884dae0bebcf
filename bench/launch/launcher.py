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
# What has not ended by then is left to its keeper, which ends it when this process is gone.
CLOSE_SECONDS = 60.0
NOTHING_LOST = "Nothing is lost: finished trials are kept, and the same command goes on"


class NoMachinesError(RuntimeError):
    """There is nothing to run trials on, now. That is nobody's result: no record is made of it."""


@dataclass(frozen=True)
class Progress:
    """Where a rank is: a phase has begun, a step was made, or it is alive."""

    trial_id: str
    rank: int
    data: JsonDict


@dataclass(frozen=True)
class Ended:
    """The processes of an attempt are gone. ``files`` are on this machine, for the store to take."""

    trial_id: str
    attempt_id: str
    outcome: Outcome
    provenance: Provenance | None
    seconds: float
    files: Sequence[Path] = ()
    placement: Placement | None = None
    other_outcomes: Sequence[Outcome] = ()  # of the members after the first; none if the launch failed as a whole
    shared_seconds: float = 0.0  # of the phases that ran once for all of them

    def of_member(self, number: int) -> Outcome:
        """What came of one of the trials of the launch."""
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
    since: float = field(default_factory=time.monotonic)  # no clock that somebody sets
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
    :meth:`shortage`, :meth:`await_machines`, :meth:`reserve`, :meth:`stop` and :meth:`poll`, which do here what is
    right for machines that are always there. What it must keep, whatever it meets: every attempt that is launched puts
    exactly one :class:`Ended` into :attr:`events`, and its processes are gone by then; when the driver's process has
    died, however it died, nothing that it started goes on.

    Args:
        cluster: The machines it may use.
        outbox: Where attempts wait for the store, a folder for each.
    """

    name: str  # as records have it

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

        They write into ``run.outbox``, or their files are brought there when they have ended. What is heard of them
        goes into :attr:`events` as :class:`Progress`; an :class:`Ended` follows when they are gone. An attempt whose
        ``run.stop_reason`` is set is to be ended.
        """

    @abstractmethod
    def close(self) -> None:
        """End everything that this launcher started, within :data:`CLOSE_SECONDS` or so, whatever does not answer."""

    def check(self, trials: Sequence[TrialSpec]) -> None:  # noqa: B027 - there may be nothing to look at
        """Look, before the first trial starts, whether all machines have what these need. On this machine they do.

        Raises:
            ConfigError: Naming machines and what they lack.
        """

    def shortage(self, spec: TrialSpec) -> str | None:
        """Why a trial can never run here; None if it can, or could if machines came back that have been lost."""
        return self.cluster.shortage(spec)

    def await_machines(self, spec: TrialSpec) -> None:  # noqa: B027 - this machine does not go away
        """A trial waits while nothing runs: see that machines are on their way, and for how long already.

        Raises:
            NoMachinesError: There have been none that hold it for longer than one waits.
        """

    def reserve(self, spec: TrialSpec) -> list[Seat] | None:
        """Seats for a trial beside those that run now; None if there is no room. They are taken until its end."""
        return self.cluster.seat(spec.trial_id, self.cluster.need(spec))

    def start(self, started: StartedAttempt, seats: list[Seat]) -> None:
        """Start an attempt on its seats; its events come through :meth:`poll`. To be overridden is :meth:`launch`."""
        folder = open_attempt(self.outbox, started)
        run = Running(started, folder, self.cluster.need(started.spec), seats)
        self.running[run.trial_id] = run
        self.launch(run)

    def stop(self, trial_id: str, reason: StopReason) -> None:
        """Have a running trial end; its Ended event follows."""
        self.running[trial_id].stop_reason = reason

    def poll(self, timeout_seconds: float) -> list[Progress | Ended]:
        """Events since the last call; waits for the first one at most so long. Seats of what has ended are free.

        The driver calls it again and again: this is the place to look after machines. An override ends with this one.
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
            return event  # of an attempt that was given up: the seats are those of another one
        del self.running[event.trial_id]
        placement = Placement(
            nodes=[seat.node_id for seat in run.seats],
            gpus=[list(seat.gpus) for seat in run.seats],
            exclusive=run.spec.resources.exclusive,
            co_tenants=self.cluster.release(event.trial_id),
        )
        return dataclasses.replace(event, placement=placement)


class LauncherOptions(Spec):
    """What the command line says of a launcher, which it makes; its module imports neither torch nor ray.

    Each field is an option of the same name: ``--address``, or for those that have no option of their own
    ``--launcher-option name=value``. An option that is no field is refused, as it would have no effect.
    """

    @abstractmethod
    def make(self, outbox: Path, plugins: Sequence[PluginSource]) -> Launcher:
        """The launcher.

        Args:
            outbox: Where attempts wait for the store.
            plugins: What ranks must be able to import besides ``bench`` and ``methods``. Processes that this one starts
                find them by ``PYTHONPATH``.

        Raises:
            ConfigError: The machines cannot be used as the options say.
        """
