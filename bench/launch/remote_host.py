"""The driver's end of the wire: a rank host on another machine, with the methods of a local one."""

from __future__ import annotations

import base64
import contextlib
import itertools
import os
import queue
import shlex
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as NoAnswer
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from bench.launch.hosts import HostLost
from bench.launch.keeper import KeptProcess
from bench.launch.rank_host import END_SECONDS
from bench.launch.wire import (
    BEAT,
    BEAT_SECONDS,
    GREETING,
    SILENCE_SECONDS,
    WIRE_VERSION,
    Greeting,
    Setup,
    WireError,
    greeting_in,
    line_of,
    message_of,
)
from bench.measure.provenance import sources_sha256
from bench.schema.printable import printable
from bench.schema.record import Reason
from bench.schema.trial import JsonDict

# How long a host may take from its command to its greeting: a login, and imports from storage that may be slow.
GREETING_SECONDS = 120.0
ANSWER_SECONDS = END_SECONDS + 30.0
# How long a host may take to end its ranks and itself after its standard input is closed.
LEAVE_SECONDS = 10.0
HANG_UP_SECONDS = 1.0
LAST_LINES = 5
# The exit code of ssh when the connection has failed.
CONNECTION_LOST = 255


class RemoteHost:
    """A rank host that a command has started.

    Args:
        name: The name of the host.
        command: Starts :mod:`bench.launch.host_program` and carries its standard streams.
        log: File for the standard error of the command and the host.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._command = command
        self._log = log
        log.parent.mkdir(exist_ok=True)
        errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        try:
            self._log_start = os.fstat(errors).st_size
            # When this process dies, the keeper ends the command. The standard input of the host then closes.
            self._kept = KeptProcess(command, os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        finally:
            os.close(errors)
        assert self._kept.process.stdin is not None
        self._outgoing: IO[bytes] = self._kept.process.stdin
        self._writing = threading.Lock()
        self._numbers = itertools.count()
        self._answers: dict[int, Future[JsonDict]] = {}
        self._greeting: Future[JsonDict] = Future()
        self._heard: queue.Queue[JsonDict] = queue.Queue()
        self._started = self._last_heard = time.monotonic()
        self._lost: HostLost | None = None
        self._losing = threading.Lock()
        threading.Thread(target=self._read, name=f"read {name}", daemon=True).start()

    def greet(self, setup: Setup) -> Greeting:
        """Wait for the host's greeting, :data:`GREETING_SECONDS` from its start at most, and set it up.

        Raises:
            HostLost: No greeting came in time, or the host has another version or other sources.
        """
        try:
            raw = self._greeting.result(max(0.0, self._started + GREETING_SECONDS - time.monotonic()))
        except NoAnswer:
            how = f"`{shlex.join(self._command)}` gave no greeting within {GREETING_SECONDS:g} s"
            self._lose("node_lost", f"could not be started: {self._last_words()} ({how})")
            raise self._loss() from None
        if raw[GREETING] != WIRE_VERSION:
            self._lose("error", f"speaks version {raw[GREETING]} of the wire, this machine {WIRE_VERSION}; {SAME_CODE}")
            raise self._loss()
        try:
            greeting = Greeting.model_validate(raw)
        except ValidationError as error:
            self._lose("error", f"greets oddly: {error}")
            raise self._loss() from error
        if greeting.sources_sha256 != sources_sha256():
            theirs, ours = greeting.sources_sha256[:8], sources_sha256()[:8]
            self._lose("error", f"has other sources of Tuneoff ({theirs}) than this machine ({ours}); {SAME_CODE}")
            raise self._loss()
        self._send({"setup": setup.model_dump()})
        threading.Thread(target=self._beat, name=f"beat {self.name}", daemon=True).start()
        return greeting

    def warm(self, environment: dict[str, str]) -> None:
        self._ask("warm", environment=environment)

    def start(self, attempt_id: str, job: JsonDict, environment: dict[str, str]) -> None:
        self._ask("start", attempt_id=attempt_id, job=job, environment=environment)

    def send(self, attempt_id: str, rank: int, line: str) -> None:
        self._ask("send", attempt_id=attempt_id, rank=rank, line=line)

    def poll(self, seconds: float) -> list[JsonDict]:
        """The messages of the ranks since the last call, as :meth:`RankHost.poll` returns them.

        Raises:
            HostLost: The host is gone, and all its messages have been returned.
        """
        messages: list[JsonDict] = []
        with contextlib.suppress(queue.Empty):
            messages.append(self._heard.get(timeout=seconds))
            while True:
                messages.append(self._heard.get_nowait())
        messages = [message for message in messages if message]
        if not messages and self._lost is not None:
            raise self._loss()
        if time.monotonic() - self._last_heard > SILENCE_SECONDS:
            self._lose("node_lost", f"has said nothing for {SILENCE_SECONDS:g} s")
        return messages

    def end(self, attempt_id: str) -> bool:
        return bool(self._ask("end", attempt_id=attempt_id))

    def files(self, attempt_id: str) -> dict[str, int]:
        sizes: dict[str, int] = self._ask("files", attempt_id=attempt_id)
        return sizes

    def read(self, attempt_id: str, name: str, offset: int) -> bytes:
        return base64.b64decode(self._ask("read", attempt_id=attempt_id, name=name, offset=offset))

    def clear(self, attempt_id: str) -> None:
        self._ask("clear", attempt_id=attempt_id)

    def missing(self, paths: Sequence[str], modules: Sequence[str]) -> list[str]:
        missing: list[str] = self._ask("missing", paths=list(paths), modules=list(modules))
        return missing

    def address(self) -> str:
        return str(self._ask("address"))

    @property
    def why_lost(self) -> str:
        """The reason why the host is gone; empty while it is there."""
        return "" if self._lost is None else str(self._lost)

    def hang_up(self) -> None:
        """Make the host end its ranks and itself, without waiting for it."""
        self._lose("worker_lost", "was left")
        if self._writing.acquire(timeout=HANG_UP_SECONDS):  # else a thread is stuck in writing
            with contextlib.suppress(OSError):
                self._outgoing.close()
            self._writing.release()

    def close(self) -> None:
        """Hang up, and wait until the command has ended."""
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._kept.process.wait(LEAVE_SECONDS)
        self._kept.end()

    def _ask(self, call: str, **arguments: Any) -> Any:
        """The answer to a call.

        Raises:
            HostLost: The host is gone.
            OSError: The system of the host refuses, for example because a disk is full.
            RuntimeError: The call has failed in our code.
        """
        number, answer = next(self._numbers), Future[JsonDict]()
        self._answers[number] = answer
        if self._lost is not None:
            raise self._loss()
        self._send({"id": number, "call": call, "arguments": arguments})
        try:
            message = answer.result(ANSWER_SECONDS)
        except NoAnswer:
            self._lose("node_lost", f"gave no answer within {ANSWER_SECONDS:g} s")
            raise self._loss() from None
        finally:
            self._answers.pop(number, None)
        if (error := message.get("error")) is not None:
            kind = OSError if error["kind"] == "system" else RuntimeError
            raise kind(f"on {self.name}: {error['message']}")
        return message["answer"]

    def _send(self, message: JsonDict) -> None:
        with (
            self._writing,
            contextlib.suppress(OSError, ValueError),
        ):  # The reading thread notices the end.
            self._outgoing.write(line_of(message))
            self._outgoing.flush()

    def _beat(self) -> None:
        while self._lost is None:
            self._send(BEAT)
            time.sleep(BEAT_SECONDS)

    def _read(self) -> None:
        """Read the messages of the host until it is gone. A thread runs it."""
        incoming = self._kept.process.stdout
        assert incoming is not None
        try:
            for line in incoming:
                self._last_heard = time.monotonic()
                if self._greeting.done():
                    self._hear(message_of(line))
                elif (greeting := greeting_in(line)) is not None:
                    self._greeting.set_result(greeting)
        except (WireError, KeyError) as error:
            self._lose("worker_lost", f"said what it should not: {error}")
        code = self._kept.process.wait()
        reason: Reason = "node_lost" if code == CONNECTION_LOST else "worker_lost"
        what = "is gone" if self._greeting.done() else "could not be started"
        how = f"`{shlex.join(self._command)}` ended with exit code {code}"
        self._lose(reason, f"{what}: {self._last_words()} ({how})")

    def _hear(self, message: JsonDict) -> None:
        if "heard" in message:
            self._heard.put(message["heard"])
        elif "id" in message:
            if (answer := self._answers.get(message["id"])) is not None:
                with contextlib.suppress(InvalidStateError):
                    answer.set_result(message)
        elif "refused" in message:
            self._lose("worker_lost", f"refuses: {message['refused']}")

    def _lose(self, reason: Reason, why: str) -> None:
        """Mark the host as gone. Only the first reason is kept."""
        with self._losing:
            if self._lost is not None:
                return
            self._lost = HostLost(reason, f"host {self.name} {why}")
        for waiting in [self._greeting, *list(self._answers.values())]:
            with contextlib.suppress(InvalidStateError):  # the answer came meanwhile
                waiting.set_exception(self._loss())
        self._heard.put({})  # wakes the thread that waits for messages
        if reason == "node_lost":
            self._kept.cut()  # A command that hangs would block the threads that write to it.

    def _loss(self) -> HostLost:
        assert self._lost is not None
        return HostLost(self._lost.reason, str(self._lost))

    def _last_words(self) -> str:
        """The last lines that the command has written to standard error."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = printable(log.read().decode(errors="replace")).splitlines()
        last_lines = [line.strip() for line in lines if line.strip()][-LAST_LINES:]
        return " | ".join(last_lines) or "not a word on standard error"


SAME_CODE = "install the same version there, or run it from the folder that this one runs from (shared storage)"
