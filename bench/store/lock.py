"""Lets one driver at a time work on a results folder, even if locks of the file system do not reach other hosts.

The system's lock (flock) ends with the process that holds it and decides on one machine. On a shared file system, other
hosts may not see it. So the holder also counts up a number in the lock file. A driver that gets the system's lock, but
finds a holder on another machine in the file, watches that number and is refused if it moves.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from pathlib import Path

from pydantic import ValidationError

from bench.schema.trial import Spec

BEAT_SECONDS = 4.0
# A holder on another machine that has not counted for so many beats is taken to be dead.
SILENT_BEATS = 4
READ_ATTEMPTS = 20


class LockError(RuntimeError):
    """Another driver holds the folder, or has taken it over."""


class Holder(Spec):
    """The content of the lock file: who holds the folder."""

    host: str
    pid: int
    boot_id: str
    token: str
    beat: int


class FolderLock:
    """The lock of a results folder.

    Args:
        path: The lock file.
        beat_seconds: Between two counts of the holder.
    """

    def __init__(self, path: Path, beat_seconds: float = BEAT_SECONDS) -> None:
        self.path = path.absolute()  # read even after this process has changed its folder
        self.beat_seconds = beat_seconds
        self._me = Holder(
            host=os.uname().nodename, pid=os.getpid(), boot_id=boot_id(), token=secrets.token_hex(8), beat=0
        )
        self._released = threading.Event()
        self._counting = threading.Thread(target=self._count, name="lock", daemon=True)
        self._file = -1

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            LockError: Another driver has it.
        """
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            self._take()
        except BaseException:
            os.close(self._file)
            raise
        self._counting.start()

    def release(self) -> None:
        """Give the lock up, so that others can take it."""
        self._released.set()
        self._counting.join()
        if self._is_mine():
            os.ftruncate(self._file, 0)
        os.close(self._file)

    def check(self) -> None:
        """See that this process still holds the lock. Call it before writing a record.

        Raises:
            LockError: This process was silent for so long that another driver has taken the folder over.
        """
        if not self._is_mine() and (holder := self._holder()) is not None:
            raise LockError(f"process {holder.pid} on {holder.host} has taken over, because this one was silent")

    def _take(self) -> None:
        try:
            self._system_lock()
        except BlockingIOError:
            raise LockError(_refusal(self._holder())) from None
        except OSError:
            pass  # This file system has no locks: the count decides, even between processes of one host.
        else:
            holder = self._holder()
            if holder is not None and holder.boot_id == self._me.boot_id:
                self._write()
                return
        before = self._holder()
        if before is not None:
            self._watch(before)
        self._write()
        if not self._is_mine():
            raise LockError(_refusal(self._holder()))

    def _system_lock(self) -> None:
        for _ in range(READ_ATTEMPTS):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)  # Another process may hold it only to see whether it is held.
            else:
                return
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _watch(self, before: Holder) -> None:
        deadline = time.monotonic() + SILENT_BEATS * self.beat_seconds
        while time.monotonic() < deadline:
            time.sleep(self.beat_seconds / 4)
            if self._holder() != before:
                raise LockError(_refusal(before))

    def _count(self) -> None:
        while not self._released.wait(self.beat_seconds):
            if not self._is_mine():
                return
            self._me = self._me.model_copy(update={"beat": self._me.beat + 1})
            self._write()

    def _write(self) -> None:
        text = self._me.model_dump_json().encode().ljust(300) + b"\n"
        os.pwrite(self._file, text, 0)

    def _is_mine(self) -> bool:
        holder = self._holder()
        return holder is not None and holder.token == self._me.token

    def _holder(self) -> Holder | None:
        return read_holder(self.path)


def read_holder(path: Path) -> Holder | None:
    """Who holds a folder, or held it until it was killed; None if nobody does."""
    for _ in range(READ_ATTEMPTS):
        try:
            text = path.read_text()
            return Holder.model_validate_json(text) if text.strip() else None
        except FileNotFoundError:
            return None
        except ValidationError:
            time.sleep(0.01)  # the holder is writing a new count
    return None


def is_alive(holder: Holder, path: Path) -> bool | None:
    """Whether a holder lives; None if only its own machine can tell, or if the file system has no locks."""
    if holder.boot_id != boot_id():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return None
        fcntl.flock(file, fcntl.LOCK_UN)
    return False


def boot_id() -> str:
    """An id of this machine that changes whenever it is started."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else os.uname().nodename


def _refusal(holder: Holder | None) -> str:
    who = "an unknown process" if holder is None else f"process {holder.pid} on {holder.host}"
    return f"{who} is running this sweep; wait for it, or stop it"
