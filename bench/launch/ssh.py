"""Ranks on hosts that a command reaches: ``ssh``, ``srun``, or another command that runs a program elsewhere.

The command starts one rank host (:mod:`bench.launch.host_program`) on each machine of a list. The host talks to the
driver over the standard input and output of the command (:mod:`bench.launch.wire`). It opens no port and needs no Ray.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from bench.launch.capacity import Cluster, Machine, Seat
from bench.launch.hosts import HostLauncher, HostLost
from bench.launch.launcher import (
    NOTHING_LOST,
    Ended,
    LauncherOptions,
    NoMachinesError,
    Progress,
    Running,
)
from bench.launch.remote_host import RemoteHost
from bench.launch.wire import Greeting, Setup
from bench.measure.provenance import SOURCE_ROOT
from bench.plugins.source import PluginSource
from bench.schema.trial import TrialSpec
from bench.schema.validation import ConfigError

# How long the driver waits for lost hosts, when nothing runs and the others are too small for what waits.
HOSTS_RETURN_SECONDS = 120.0
# The pause before a lost host is started again. It doubles each time that the host does not start.
RESTART_SECONDS = 1.0
MAX_RESTART_SECONDS = 30.0
SCONTROL_SECONDS = 30.0
LOG_FOLDER = "hosts"
# user@name:count, or an address of IPv6 in brackets. No part of it has a meaning for a shell or looks like an option.
ENTRY = re.compile(
    r"(?P<name>(?:\w[\w.-]*@)?(?:\w[\w.-]*|\[(?=[^]]*:)[0-9A-Fa-f:.]+\]))(?::(?P<count>[1-9][0-9]*))?", re.ASCII
)


@dataclass(frozen=True)
class ListedHost:
    """A host of the list: ``name`` or ``name:count``."""

    name: str
    count: int | None = None
    """How many of its GPUs are used, or of its cores if it has no GPU; None: all."""

    def machine(self, greeting: Greeting) -> Machine:
        """The cores and GPUs that may be used.

        Raises:
            ConfigError: The host has fewer GPUs than the list says.
        """
        cpus, gpus = greeting.cpus, len(greeting.gpus)
        if self.count is not None and gpus:
            if self.count > gpus:
                raise ConfigError(f"--hosts: {self.name}:{self.count}: this host has {gpus} GPUs")
            gpus = self.count
        elif self.count is not None:
            cpus = self.count  # the list is believed, since containers may show fewer
        return Machine(cpus, gpus, self.name, greeting.accelerator, greeting.processor)


class SshLauncher(HostLauncher):
    """Starts the ranks of a trial on hosts that a command reaches.

    Args:
        name: The name of the launcher in records.
        outbox: Folder for attempts on their way into the store. Hosts that see it write into it. From other hosts the
            files come over the wire.
        listed: The hosts.
        open_host: Starts the host of a name.
        setup: The first message to each host; its name is filled in.

    Raises:
        ConfigError: One of the hosts does not start.
    """

    def __init__(
        self,
        name: str,
        outbox: Path,
        listed: Sequence[ListedHost],
        open_host: Callable[[str], RemoteHost],
        setup: Setup,
    ) -> None:
        self.name = name
        self._listed = {host.name: host for host in listed}
        self._open_host = open_host
        self._setup = setup
        self._hosts: dict[str, RemoteHost] = {}
        self._greetings: dict[str, Greeting] = {}
        self._machines: dict[str, Machine] = {}
        self._why_lost: dict[str, str] = {}
        self._waits_since: float | None = None
        self._start_all()
        super().__init__(Cluster(self._present()), outbox)
        for host_name in self._listed:
            threading.Thread(target=self._attend, args=(host_name,), name=f"hear {host_name}", daemon=True).start()

    def host(self, node_id: str) -> RemoteHost:
        if (host := self._hosts.get(node_id)) is None:
            raise HostLost("node_lost", self._why_lost.get(node_id, f"host {node_id} is gone"))
        return host

    def prepare(self, run: Running) -> list[list[str]]:
        return [[self._greetings[seat.node_id].gpus[gpu] for gpu in seat.gpus] for seat in run.seats]

    def check(self, trials: Sequence[TrialSpec]) -> None:
        self.look_at_hosts(trials)

    def reserve(self, spec: TrialSpec) -> list[Seat] | None:
        self.cluster.update(self._present())
        return super().reserve(spec)

    def poll(self, timeout_seconds: float) -> list[Progress | Ended]:
        self.cluster.update(self._present())
        return super().poll(timeout_seconds)

    def await_machines(self, spec: TrialSpec) -> None:
        if (missing := self.cluster.missing(spec)) is None:
            self._waits_since = None
            return
        self._waits_since = self._waits_since or time.monotonic()
        if (waited := time.monotonic() - self._waits_since) > HOSTS_RETURN_SECONDS:
            why = "; ".join(why for name, why in self._why_lost.items() if name not in self._hosts)
            raise NoMachinesError(
                f"no machines: {missing}, for {waited:.0f} s now (the limit is {HOSTS_RETURN_SECONDS:g} s): {why}. "
                f"Issue the command again when there are more. {NOTHING_LOST}"
            )

    def close(self) -> None:
        super().close()
        hosts = list(self._hosts.values())
        for host in hosts:
            host.hang_up()
        for host in hosts:
            host.close()

    def _present(self) -> list[Machine]:
        """The machines of the hosts that are connected, in the order of the list."""
        hosts = {name: self._hosts.get(name) for name in self._listed}
        return [self._machines[name] for name, host in hosts.items() if host is not None and not host.why_lost]

    def _start_all(self) -> None:
        """Start all hosts at once.

        Raises:
            ConfigError: Some hosts do not start. The message names them.
        """
        opened: dict[str, RemoteHost] = {}
        problems = []
        try:
            for name in self._listed:
                opened[name] = self._open_host(name)
            for name, host in opened.items():
                try:
                    self._welcome(name, host)
                except (HostLost, ConfigError) as why:
                    problems.append(str(why))
            _refuse(problems)
        except BaseException:
            for host in opened.values():
                host.hang_up()
            for host in opened.values():
                host.close()
            raise

    def _welcome(self, name: str, host: RemoteHost) -> None:
        """Wait for the greeting of a host, and use the host from then on.

        Raises:
            HostLost: No greeting comes.
            ConfigError: The host has fewer GPUs than the list says.
        """
        greeting = host.greet(self._setup.model_copy(update={"name": name}))
        self._machines[name] = self._listed[name].machine(greeting)
        self._greetings[name] = greeting
        self._hosts[name] = host

    def _attend(self, name: str) -> None:
        """Pass on the messages of a host, and start it again when it is lost, until this launcher is closed.

        A thread runs it.
        """
        while True:
            host = self._hosts[name]
            self.receive(name, host)
            if self.closing:
                return
            self._why_lost[name] = host.why_lost or f"host {name} was not heard any more"
            del self._hosts[name]  # Later trials get a new host of this name.
            host.close()
            if not self._start_again(name):
                return

    def _start_again(self, name: str) -> bool:
        pause = RESTART_SECONDS
        while not self.closing:
            time.sleep(pause)
            pause = min(2 * pause, MAX_RESTART_SECONDS)
            host = None
            try:
                host = self._open_host(name)
                self._welcome(name, host)
            except (
                HostLost,
                ConfigError,
                OSError,
            ) as why:  # OSError: the log cannot be written
                self._why_lost[name] = str(why)
                if host is not None:
                    host.close()
            else:
                return True
        return False


class SshOptions(LauncherOptions):
    """Hosts, and the command that reaches them. ``BatchMode`` makes ssh fail where it would ask for a password."""

    launcher: ClassVar[str] = "ssh"
    default_command: ClassVar[str] = "ssh -T -a -x -o BatchMode=yes -o ServerAliveInterval=15 {host}"

    hosts: str | None = Field(None, description="a,b:4: names, each with how many GPUs (or cores) of it are used")
    hosts_file: Path | None = Field(None, description="file with such names, a line each; # begins a comment")
    host_command: str | None = Field(
        None,
        description="what runs a program on a host; {host} is its name, else that is added. The program's words are "
        "added behind, or stand as one line for a shell where {command} is",
    )
    host_python: str | None = Field(
        None, description="Python there, for which Tuneoff is installed; None: this one, and this folder of Tuneoff"
    )
    host_variables: str | None = Field(None, description="A,B: variables of this process that the hosts get, too")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        self._listed() or slurm_nodes()
        self.command("a-host")
        self._variables()
        return self

    def make(self, outbox: Path, plugins: Sequence[PluginSource]) -> SshLauncher:
        listed = self._listed() or [ListedHost(name) for name in slurm_hosts(slurm_nodes())]
        program = self.command(listed[0].name)[0]
        if shutil.which(program) is None:
            raise ConfigError(f"--launcher {self.launcher}: there is no program {program!r} (set --host-command)")
        paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        setup = Setup(name="", paths=[str(Path(path).absolute()) for path in paths], variables=self._variables())

        def open_host(name: str) -> RemoteHost:
            return RemoteHost(name, self.command(name), outbox.parent / LOG_FOLDER / f"{name}.log")

        return SshLauncher(self.launcher, outbox, listed, open_host, setup)

    def command(self, host: str) -> list[str]:
        """The words that start a rank host there.

        Raises:
            ConfigError: The template is no command.
        """
        template = self.host_command or self.default_command
        try:
            words = shlex.split(template)
        except ValueError as error:
            raise ConfigError(f"--host-command {template}: {error}") from error
        if not words:
            raise ConfigError("--host-command is empty; leave it out, or write e.g. 'ssh -p 2222 {host}'")
        if not any("{host}" in word for word in words):
            words.append("{host}")
        words = [word.replace("{host}", host) for word in words]
        program = host_program(self.host_python)
        if not any("{command}" in word for word in words):
            return [*words, *map(shlex.quote, program)]
        return [word.replace("{command}", shlex.join(program)) for word in words]

    def _listed(self) -> list[ListedHost]:
        """The hosts of the options ``hosts`` or ``hosts_file``; none if neither is given.

        Raises:
            ConfigError: An entry is no host, or both options are given.
        """
        if self.hosts is not None and self.hosts_file is not None:
            raise ConfigError("--hosts and --hosts-file both name the hosts; leave one of them out")
        if self.hosts is not None:
            return listed_hosts(self.hosts.split(","), "--hosts")
        if self.hosts_file is None:
            return []
        try:
            lines = self.hosts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--hosts-file {self.hosts_file}: {error}") from error
        return listed_hosts([line.partition("#")[0] for line in lines], f"--hosts-file {self.hosts_file}")

    def _variables(self) -> dict[str, str]:
        """Variables of this process for the hosts.

        Raises:
            ConfigError: One of the variables is not set.
        """
        names = [name.strip() for name in (self.host_variables or "").split(",") if name.strip()]
        if missing := [name for name in names if name not in os.environ]:
            raise ConfigError(f"host_variables: {', '.join(missing)} is not set here")
        return {name: os.environ[name] for name in names}


class SrunOptions(SshOptions):
    """The nodes of the Slurm job that this process runs in, each reached by a step of the job."""

    launcher: ClassVar[str] = "srun"
    # Without a binding the host may use all cores that the job has on its node. The driver divides them among ranks.
    default_command: ClassVar[str] = "srun --overlap --nodes=1 --ntasks=1 --cpu-bind=none --nodelist={host}"


def host_program(python: str | None) -> list[str]:
    """The words that run a rank host: with the given Python, or with this Python and this folder of Tuneoff."""
    module = ["-P", "-m", "bench.launch.host_program"]
    if python is not None:
        return [python, *module]
    return ["env", f"PYTHONPATH={SOURCE_ROOT}", sys.executable, *module]


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def listed_hosts(entries: Sequence[str], where: str) -> list[ListedHost]:
    """The hosts of a list.

    Raises:
        ConfigError: The list is empty, a host is named twice, or an entry is no host.
    """
    hosts: dict[str, ListedHost] = {}
    for entry in filter(None, map(str.strip, entries)):
        if (parts := ENTRY.fullmatch(entry)) is None:
            raise ConfigError(f"{where}: {entry!r} is no host; expected a name, or name:count with a count from 1")
        name, count = parts["name"].replace("[", "").replace("]", ""), parts["count"]
        if name in hosts:
            raise ConfigError(f"{where}: {name} is named twice; write {name}:2 to use two of its GPUs or cores")
        hosts[name] = ListedHost(name, None if count is None else int(count))
    if not hosts:
        raise ConfigError(f"{where}: names no host; expected e.g. a,b:4")
    return list(hosts.values())


def slurm_nodes() -> str:
    """The nodes of the Slurm job that this process runs in, as Slurm writes them: ``a[1-3,7]``.

    Raises:
        ConfigError: This process runs in no Slurm job.
    """
    if (nodes := os.environ.get("SLURM_JOB_NODELIST")) is None:
        raise ConfigError(
            "it needs hosts: --hosts a,b:4 or --hosts-file FILE. In a Slurm job they are its nodes; SLURM_JOB_NODELIST "
            "is not set here"
        )
    return nodes


def slurm_hosts(nodes: str) -> list[str]:
    """The names of the nodes that Slurm writes as ``a[1-3,7]``.

    Raises:
        ConfigError: ``scontrol`` fails.
    """
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        raise ConfigError(f"`{shlex.join(command)}` does not tell the nodes of this job: {reason}") from error
    return [host.name for host in listed_hosts(done.stdout.splitlines(), shlex.join(command))]
