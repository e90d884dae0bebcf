"""Starts, hears and ends the rank processes of one machine.

It lives in the driver's process, in an actor on a Ray node, or at the other end of a wire
(:mod:`bench.launch.host_program`). Takes and gives JSON. Imports neither torch nor ray: the ranks do the first, the Ray
launcher wraps this class.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.launch.keeper import KeptProcess
from bench.measure.provenance import SOURCE_ROOT
from bench.schema.trial import JsonDict
from bench.store.outbox import REPORT_FILES, START_FILE, log_name, payload
from bench.store.owned_folder import owned_folder

# Ranks do not get these variables. Batch systems and MPI describe their own jobs in them, which DeepSpeed would take
# for ours, and those of Ray hold the cluster's token.
FOREIGN_VARIABLES = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "PRTE_", "HYDRA_", "MPI_", "RAY_")
LOOPBACK = "127.0.0.1"
CHUNK_BYTES = 32 * 2**20
END_SECONDS = 30.0
# Of the log of a fork server that died.
LAST_LINES = 5


@dataclass
class _Rank:
    attempt_id: str
    rank: int
    jobs: int
    process: KeptProcess | Fork
    gone: threading.Event = field(default_factory=threading.Event)

    def why_gone(self) -> str:
        """Why a process vanished without an exit code, as far as one can tell."""
        return self.process.server.last_words() if isinstance(self.process, Fork) else ""


class RankHost:
    """Rank processes of one machine, and what they say.

    Args:
        module: What runs a rank, in a process that is started for it alone. None: ``bench.rank.process``, forked from a
            process that has imported the libraries already, on systems where that is safe.
    """

    def __init__(self, module: str | None = None) -> None:
        self._warm = module is None and sys.platform == "linux"
        self._module = module or "bench.rank.process"
        self._folder = owned_folder("tuneoff-host-")
        # This process deletes the folder even if the host dies; if it is killed too, the next host does.
        self._folder_keeper = KeptProcess(["true"], os.environ, flags=["--hold", "--remove", str(self._folder)])
        # Ranks and their libraries have their temporary folder in this one, and it vanishes with it.
        self._temporary = {"TMPDIR": str(self._folder / "tmp")}
        (self._folder / "tmp").mkdir()
        self._servers: dict[str, ForkServer] = {}
        self._ranks: dict[str, list[_Rank]] = {}
        self._outboxes: dict[str, Path] = {}
        self._messages: deque[JsonDict] = deque()
        self._heard = threading.Condition()
        self._starting = threading.Lock()

    def warm(self, environment: Mapping[str, str]) -> None:
        """Import the libraries now, so that the first rank starts sooner."""
        if self._warm:
            with self._starting:
                self._server({**self._temporary, **environment})

    def missing(self, paths: Sequence[str], modules: Sequence[str]) -> list[str]:
        """Which of these files, folders and modules this machine lacks."""
        lacking = [path for path in paths if not Path(path).exists()]
        for module in modules:
            try:
                found = importlib.util.find_spec(module)
            except ImportError:
                found = None
            if found is None:
                lacking.append(f"module {module}")
        return lacking

    def address(self) -> str:
        """The address at which ranks of other machines reach those of this one."""
        return LOOPBACK

    def _network(self) -> dict[str, str]:
        """What has gloo and NCCL use the network of :meth:`address`, unless this machine's owner has said which one.

        By itself gloo takes the one that the machine's name stands for, which may be the loopback.
        """
        here = self.address()
        for name, addresses in psutil.net_if_addrs().items():
            if any(address.address == here for address in addresses):
                wanted = {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}
                return {variable: value for variable, value in wanted.items() if variable not in os.environ}
        return {}

    def start(self, attempt_id: str, job: JsonDict, environment: Mapping[str, str]) -> None:
        """Start a rank in a fresh process of its own.

        Args:
            attempt_id: Of the trial's attempt.
            job: A :class:`bench.rank.process.RankJob`; its outbox is used as it is if this machine sees it.
            environment: Variables of the rank, beside those of this process.
        """
        outbox = self._outbox(attempt_id, Path(job["outbox"]))
        environment = {**self._temporary, **environment}
        if job["host"] != LOOPBACK:
            environment = {**self._network(), **environment}
        jobs_read, jobs = os.pipe()
        reports, reports_write = os.pipe()
        log = os.open(outbox / log_name(job["rank"]), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            start = self._forked if self._warm else self._alone
            rank = _Rank(attempt_id, job["rank"], jobs, start(environment, jobs_read, reports_write, log))
        finally:
            for descriptor in (jobs_read, reports_write, log):
                os.close(descriptor)
        self._ranks.setdefault(attempt_id, []).append(rank)
        threading.Thread(target=self._read, args=(rank, reports), daemon=True).start()
        _send(rank, json.dumps({**job, "outbox": str(outbox)}))

    def send(self, attempt_id: str, rank: int, line: str) -> None:
        """Write a line to a rank's standard input."""
        for each in self._ranks[attempt_id]:
            if each.rank == rank:
                _send(each, line)

    def poll(self, seconds: float) -> list[JsonDict]:
        """What ranks said since the last call; waits at most so long for the first of it.

        Each message has ``attempt_id`` and ``rank``, and what :mod:`bench.rank.process` lists, or ``exit``: the exit
        code, negative for a signal, None if there never was a process or even its keeper was killed, then with ``why``.
        Nothing comes after that.
        """
        deadline = time.monotonic() + seconds
        with self._heard:
            while not self._messages and (left := deadline - time.monotonic()) > 0:
                self._heard.wait(left)
            found = list(self._messages)
            self._messages.clear()
            return found

    def end(self, attempt_id: str) -> bool:
        """Kill what is left of an attempt on this machine. Returns whether all of it is gone."""
        ranks = self._ranks.pop(attempt_id, [])
        for rank in ranks:
            rank.process.cut()
        deadline = time.monotonic() + END_SECONDS
        gone = all([rank.gone.wait(max(0.0, deadline - time.monotonic())) for rank in ranks])
        for rank in ranks:
            os.close(rank.jobs)
        return gone

    def files(self, attempt_id: str) -> dict[str, int]:
        """Names and sizes of the files of an attempt that the driver does not see; none on shared storage."""
        outbox = self._outboxes.get(attempt_id)
        if outbox is None or outbox.parent != self._folder:
            return {}
        return {path.name: path.stat().st_size for path in [*payload(outbox), *outbox.glob(REPORT_FILES)]}

    def read(self, attempt_id: str, name: str, offset: int, most_bytes: int = CHUNK_BYTES) -> bytes:
        """A piece of one of these files."""
        with (self._outboxes[attempt_id] / Path(name).name).open("rb") as file:
            file.seek(offset)
            return file.read(most_bytes)

    def clear(self, attempt_id: str) -> None:
        """Forget an attempt."""
        outbox = self._outboxes.pop(attempt_id, None)
        if outbox is not None and outbox.parent == self._folder:
            shutil.rmtree(outbox, ignore_errors=True)

    def close(self) -> None:
        """End everything."""
        for attempt_id in list(self._ranks):
            self.end(attempt_id)
        for server in self._servers.values():
            server.close()
        self._folder_keeper.end()

    def _outbox(self, attempt_id: str, outbox: Path) -> Path:
        if attempt_id not in self._outboxes:
            if not (outbox / START_FILE).is_file():  # This machine does not share the storage of the driver's folder.
                outbox = self._folder / attempt_id
                outbox.mkdir()
            self._outboxes[attempt_id] = outbox
        return self._outboxes[attempt_id]

    def _forked(self, environment: Mapping[str, str], jobs: int, reports: int, log: int) -> Fork:
        with self._starting:
            return self._server(environment).fork(environment, jobs, reports, log)

    def _server(self, environment: Mapping[str, str]) -> ForkServer:
        # DeepSpeed decides when it is imported whether it uses GPUs.
        kind = environment.get("DS_ACCELERATOR", "any")
        server = self._servers.get(kind)
        if server is None or not server.is_alive():
            server = self._servers[kind] = ForkServer(environment, self._folder / f"fork-server-{kind}.log")
        return server

    def _alone(self, environment: Mapping[str, str], jobs: int, reports: int, log: int) -> KeptProcess:
        return KeptProcess(
            [sys.executable, "-P", "-m", self._module, str(reports)],
            clean_environment(environment),
            flags=["--tell-exit", str(reports)],
            pass_fds=[reports],
            stdin=jobs,
            stdout=log,
            stderr=log,
        )

    def _read(self, rank: _Rank, reports: int) -> None:
        exit_code: int | None = None
        with os.fdopen(reports, "rb") as lines:
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # the process died while it wrote this line
                if "exit" in message:
                    exit_code = message["exit"]
                else:
                    self._say(rank, message)
        rank.gone.set()
        self._say(rank, {"exit": exit_code, "why": rank.why_gone() if exit_code is None else ""})

    def _say(self, rank: _Rank, message: JsonDict) -> None:
        with self._heard:
            self._messages.append({"attempt_id": rank.attempt_id, "rank": rank.rank, **message})
            self._heard.notify_all()


class Fork:
    """A process that a fork server has made. Its keeper lives as long as it is not cut off."""

    def __init__(self, server: ForkServer, lifeline: int) -> None:
        self.server = server
        self._lifeline = lifeline

    def cut(self) -> None:
        os.close(self._lifeline)


class ForkServer:
    """The driver's end of :mod:`bench.launch.fork_server`."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log.open("ab") as output:
            self._kept = KeptProcess(
                [sys.executable, "-P", "-m", "bench.launch.fork_server", str(theirs.fileno())],
                clean_environment(environment),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def is_alive(self) -> bool:
        return self._kept.process.poll() is None

    def fork(self, environment: Mapping[str, str], jobs: int, reports: int, log: int) -> Fork:
        """A fresh process for one rank; as soon as the libraries are imported."""
        theirs, lifeline = os.pipe()
        try:
            socket.send_fds(self._requests, [json.dumps(dict(environment)).encode()], [theirs, jobs, reports, log])
        except ConnectionError:
            pass  # The server has just died. Its pipes are closed, so that the rank counts as vanished.
        finally:
            os.close(theirs)
        return Fork(self, lifeline)

    def last_words(self) -> str:
        """The last lines that the server has printed, if it has died."""
        if self.is_alive():
            return ""
        lines = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return f": the process that forks ranks ended with code {self._kept.process.returncode}; {' | '.join(lines)}"

    def close(self) -> None:
        self._requests.close()
        self._kept.end()


def clean_environment(own: Mapping[str, str]) -> dict[str, str]:
    """The variables of a rank: those of this process, without what is not for ranks, and ``own``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_VARIABLES)}
    path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), inherited.get("PYTHONPATH")]))
    # The folder of the command is not searched for modules, because files there may have the names of ours.
    return {**inherited, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **own}


def _send(rank: _Rank, line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # The process is dead already, which its exit code will tell.
        os.write(rank.jobs, line.encode() + b"\n")
