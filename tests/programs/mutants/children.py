"""Work in a fork, which may hang, allocate or crash."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Tell = Callable[[Any], None]
MOST_BYTES = 8 * 2**30
_POLL_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1  # what is forked here ends with what has forked it


@dataclass(frozen=True)
class Ended:
    """How a fork ended."""

    code: int | None  # None: it ran past its limit
    messages: list[Any]


def in_fork(
    work: Callable[[Tell], int], limit_seconds: float, hears: Callable[[Any], None] = lambda value: None
) -> Ended:
    """Run a function in a fork of this process, and end all that it has started.

    Args:
        work: Gets a function that sends this process a JSON value; returns the exit code. Its output is discarded.
        limit_seconds: Then it is killed.
        hears: Gets each value as it arrives.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _become_child(work, writing)
    os.close(writing)
    messages: list[Any] = []
    left, status = b"", None

    def receive(part: bytes) -> None:
        nonlocal left
        *lines, left = (left + part).split(b"\n")
        for line in lines:
            messages.append(json.loads(line))
            hears(messages[-1])

    until = time.monotonic() + limit_seconds
    try:
        while status is None and time.monotonic() < until:
            ready, _, _ = select.select([reading], [], [], _POLL_SECONDS)
            part = os.read(reading, 2**16) if ready else b""
            receive(part)
            if not part:
                ended, code = os.waitpid(pid, os.WNOHANG)
                status = code if ended else None
                if ready and status is None:  # the child has closed the pipe, and is about to end
                    time.sleep(_POLL_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        if status is None:
            os.waitpid(pid, 0)
        os.set_blocking(reading, False)
        with contextlib.suppress(BlockingIOError):
            while part := os.read(reading, 2**16):
                receive(part)
        os.close(reading)
    return Ended(None if status is None else os.waitstatus_to_exitcode(status), messages)


def _become_child(work: Callable[[Tell], int], writing: int) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        code = work(lambda value: _tell(writing, value))
    except BaseException:  # noqa: BLE001 - whatever it is, the parent hears of it
        _tell(writing, traceback.format_exc())
    finally:
        os._exit(code)


def _tell(writing: int, value: Any) -> None:
    left = (json.dumps(value) + "\n").encode()
    while left:
        left = left[os.write(writing, left) :]
