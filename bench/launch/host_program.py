"""A rank host as a program, for drivers on other machines: ``python -P -m bench.launch.host_program``.

It greets, is set up by the driver's first line, and then answers calls as docs/inside/wire.md has them. When its
standard input closes, or nothing has come for :data:`bench.launch.wire.SILENCE_SECONDS`, the driver is gone: it ends
its ranks and itself. If it is killed, the keepers of its ranks do that. Standard error is for people; the driver keeps
it.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import platform
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import psutil

from bench.launch.local import this_machine, visible_gpu
from bench.launch.rank_host import LOOPBACK, RankHost
from bench.launch.wire import (
    BEAT,
    BEAT_SECONDS,
    PIECE_BYTES,
    SILENCE_SECONDS,
    WIRE_VERSION,
    Greeting,
    Setup,
    WireError,
    line_of,
    message_of,
)
from bench.measure.provenance import sources_sha256, usable_cores
from bench.schema.trial import JsonDict

# Calls that may be in progress at once.
CALL_THREADS = 16
POLL_SECONDS = 1.0
# Files of devices of which torch could use one: without any there is nothing to ask it.
GPU_FILES = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")
# An address for documentation, which nobody has: asking the system for the way there sends nothing.
FAR_AWAY = ("192.0.2.1", 9)


class WiredHost(RankHost):
    """A rank host that knows where others reach it."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup.module)
        self._name = setup.name

    def address(self) -> str:
        return own_address(self._name)


class Program:
    """The host's end of the wire."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming = os.fdopen(incoming, "rb")
        self._outgoing = outgoing
        self._lock = threading.Lock()
        self._last_heard = time.monotonic()
        self._host: WiredHost | None = None

    def run(self) -> NoReturn:
        """Until the driver is gone."""
        self._say(greeting().model_dump())
        threading.Thread(target=self._watch, daemon=True).start()
        calls = ThreadPoolExecutor(CALL_THREADS)
        try:
            for line in self._incoming:
                self._last_heard = time.monotonic()
                message = message_of(line)
                if "setup" in message:
                    self._set_up(Setup.model_validate(message["setup"]))
                elif "call" in message:
                    calls.submit(self._answer, message)
        except Exception as error:  # noqa: BLE001 - whatever it is, both ends are told
            traceback.print_exc()
            self._say({"refused": f"{type(error).__name__}: {error} (version {WIRE_VERSION} of the wire)"})
            self.leave(1)
        self.leave(0)

    def leave(self, exit_code: int) -> NoReturn:
        """End the ranks and this process."""
        if self._host is not None:
            self._host.close()
        sys.stderr.flush()
        os._exit(exit_code)

    def _set_up(self, setup: Setup) -> None:
        os.environ.update(setup.variables)
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*setup.paths, os.environ.get("PYTHONPATH")]))
        sys.path.extend(path for path in setup.paths if path not in sys.path)
        self._host = WiredHost(setup)
        threading.Thread(target=self._forward, args=(self._host,), daemon=True).start()

    def _answer(self, message: JsonDict) -> None:
        try:
            answer = self._call(message["call"], message["arguments"])
        except Exception as error:  # noqa: BLE001 - the driver must hear of it whatever it is
            traceback.print_exc()
            kind = "system" if isinstance(error, OSError) else "program"
            self._say({"id": message["id"], "error": {"kind": kind, "message": f"{type(error).__name__}: {error}"}})
        else:
            self._say({"id": message["id"], "answer": answer})

    def _call(self, call: str, arguments: JsonDict) -> Any:
        host = self._host
        if host is None:
            raise WireError("a call came before setup")
        match call:
            case "warm":
                return host.warm(**arguments)
            case "start":
                return host.start(**arguments)
            case "send":
                return host.send(**arguments)
            case "end":
                return host.end(**arguments)
            case "files":
                return host.files(**arguments)
            case "read":
                return base64.b64encode(host.read(**arguments, most_bytes=PIECE_BYTES)).decode()
            case "clear":
                return host.clear(**arguments)
            case "missing":
                return host.missing(**arguments)
            case "address":
                return host.address()
        raise WireError(f"there is no call {call!r}")

    def _forward(self, host: RankHost) -> None:
        """What ranks say."""
        while True:
            for message in host.poll(POLL_SECONDS):
                self._say({"heard": message})

    def _watch(self) -> None:
        """Give signs of life, and look for those of the driver."""
        while time.monotonic() - self._last_heard < SILENCE_SECONDS:
            self._say(BEAT)
            time.sleep(BEAT_SECONDS)
        sys.stderr.write(f"the driver has said nothing for {SILENCE_SECONDS:g} s; its ranks end\n")
        self.leave(1)

    def _say(self, message: JsonDict) -> None:
        data = line_of(message)
        with self._lock, contextlib.suppress(OSError):  # Nobody listens any more: standard input will close, too.
            while data:
                data = data[os.write(self._outgoing, data) :]


def greeting() -> Greeting:
    """Who and what this machine is."""
    machine = this_machine() if may_have_gpus() else None
    return Greeting(
        sources_sha256=sources_sha256(),
        hostname=platform.node(),
        python=platform.python_version(),
        cpus=usable_cores() if machine is None else machine.cpus,
        gpus=[] if machine is None else [visible_gpu(number) for number in range(machine.gpus)],
        accelerator="" if machine is None else machine.accelerator,
    )


def may_have_gpus() -> bool:
    """Whether it is worth the seconds of importing torch to ask it."""
    return sys.platform != "linux" or any(any(Path("/dev").glob(pattern)) for pattern in GPU_FILES)


def own_address(name: str) -> str:
    """Where ranks on other machines reach those of this one.

    The network that ``GLOO_SOCKET_IFNAME`` names; else the address that the driver's ssh came to; else what this
    machine is called by the driver or by itself, or the address from which it reaches the world; else any that it has.
    What is none of its own, or can be reached from here alone, does not count. A machine that has nothing else plays
    several.
    """
    networks = {name: [entry.address for entry in entries] for name, entries in psutil.net_if_addrs().items()}
    own = [address for addresses in networks.values() for address in addresses if is_for_others(address)]
    known = (candidate for candidate in _candidates(name, networks) if candidate in own)
    return next(known, min(own, key=lambda address: ":" in address, default=LOOPBACK))


def _candidates(name: str, networks: dict[str, list[str]]) -> Iterator[str]:
    yield from networks.get(os.environ.get("GLOO_SOCKET_IFNAME", ""), [])
    yield from os.environ.get("SSH_CONNECTION", "").split()[2:3]
    for known_as in (name.rpartition("@")[2], platform.node()):
        with contextlib.suppress(OSError):
            for *_, place in socket.getaddrinfo(known_as, None, type=socket.SOCK_STREAM):
                yield str(place[0])
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(FAR_AWAY)
        yield str(probe.getsockname()[0])


def is_for_others(address: str) -> bool:
    """Whether other machines could reach it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False  # of hardware, or with a scope
    return not (parsed.is_loopback or parsed.is_link_local)


def main() -> None:
    """Entry of the program. What anybody prints goes to standard error, and standard input is the wire's alone."""
    incoming, outgoing = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    Program(incoming, outgoing).run()


if __name__ == "__main__":
    main()
