"""A rank host as a program, for drivers on other machines: ``python -P -m bench.launch.host_program``.

The program sends a greeting, reads its setup from the driver's first line, and then answers calls, as
docs/inside/wire.md describes. It ends its ranks and itself when its standard input closes, or when the driver has been
silent for :data:`bench.launch.wire.SILENCE_SECONDS`. If the program is killed, the keepers end its ranks. Standard
error is for people, and the driver keeps it.
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
from bench.measure.provenance import cpu_name, sources_sha256, usable_cores
from bench.schema.trial import JsonDict

# How many calls may be in progress at once.
CALL_THREADS = 16
POLL_SECONDS = 1.0
# Device files of GPUs that torch could use. Without any of them, torch need not be imported.
GPU_FILES = ("nvidia*", "nvhost*", "nvmap", "kfd", "dxg")
# An address reserved for documentation. The system is asked for the route to it, and no packet is sent.
FAR_AWAY = ("192.0.2.1", 9)


class WiredHost(RankHost):
    """A rank host that knows the address at which other machines reach it."""

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
        """Serve the driver until it is gone."""
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
        except Exception as error:  # noqa: BLE001 - both ends must see any error
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
        except Exception as error:  # noqa: BLE001 - the driver waits for an answer
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
        """Pass on the messages of the ranks."""
        while True:
            for message in host.poll(POLL_SECONDS):
                self._say({"heard": message})

    def _watch(self) -> None:
        """Send signs of life, and end when the driver sends none."""
        while time.monotonic() - self._last_heard < SILENCE_SECONDS:
            self._say(BEAT)
            time.sleep(BEAT_SECONDS)
        sys.stderr.write(f"the driver has said nothing for {SILENCE_SECONDS:g} s; its ranks end\n")
        self.leave(1)

    def _say(self, message: JsonDict) -> None:
        data = line_of(message)
        with self._lock, contextlib.suppress(OSError):  # If the driver is gone, standard input closes as well.
            while data:
                data = data[os.write(self._outgoing, data) :]


def greeting() -> Greeting:
    """The greeting of this machine."""
    machine = this_machine() if may_have_gpus() else None
    return Greeting(
        sources_sha256=sources_sha256(),
        hostname=platform.node(),
        python=platform.python_version(),
        cpus=usable_cores() if machine is None else machine.cpus,
        gpus=[] if machine is None else [visible_gpu(number) for number in range(machine.gpus)],
        accelerator="" if machine is None else machine.accelerator,
        processor=cpu_name(),
    )


def may_have_gpus() -> bool:
    """Whether this machine may have GPUs, so that torch has to be imported to count them."""
    return sys.platform != "linux" or any(any(Path("/dev").glob(pattern)) for pattern in GPU_FILES)


def own_address(name: str) -> str:
    """The address at which ranks on other machines reach the ranks of this one.

    These are tried in turn: the addresses of the network that ``GLOO_SOCKET_IFNAME`` names, the address that the
    driver's ssh has connected to, the addresses of the names that the driver and the machine itself use, the
    address from which it reaches the internet, any other address. The first one counts that is an address of this
    machine and not of its loopback. A machine that has a loopback alone uses that.
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
    """Whether other machines could reach this address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False  # a hardware address, or one with a scope
    return not (parsed.is_loopback or parsed.is_link_local)


def main() -> None:
    """Entry of the program. Prints go to standard error, so that the standard streams belong to the wire."""
    incoming, outgoing = os.dup(0), os.dup(1)
    os.dup2(2, 1)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    Program(incoming, outgoing).run()


if __name__ == "__main__":
    main()
