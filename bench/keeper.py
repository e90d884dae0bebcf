"""Ends a command's whole process tree when whoever asked for it is gone, however it went.

A driver that is killed cannot clean up, and what it started may hang, be stopped, or be just about to start something
else. So the driver starts a keeper, and the keeper starts the command. The keeper reads a pipe that only the driver can
write to: when the driver dies, the kernel closes the pipe. On Linux the keeper is the subreaper of all that descends
from it: whatever loses its parent becomes the keeper's child, so that "no children left" means nobody is left.

As a script this file needs the standard library only:
``python -I -S keeper.py DESCRIPTOR [--hold] [--remove FOLDER] -- COMMAND...``
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.01


class Kept:
    """A command under a keeper. The arguments of ``subprocess.Popen`` apply to the command.

    Args:
        command: What to run.
        environment: All environment variables of the command.
        hold: The command ends after it has started something (a daemon); keep that until :meth:`end`.
        remove: A folder that the keeper deletes when all processes are gone.
        options: Standard streams and the like.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        hold: bool = False,
        remove: Path | None = None,
        **options: Any,
    ) -> None:
        read_end, self._lifeline = os.pipe()  # closed in every other child of this process when it execs
        arguments = [str(read_end), *(["--hold"] if hold else []), *(["--remove", str(remove)] if remove else [])]
        try:
            self.process: subprocess.Popen[str] = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, *arguments, "--", *command],
                env=dict(environment),
                pass_fds=[read_end],
                start_new_session=True,  # Ctrl-C is for the driver, which then ends what it started
                text=True,
                **options,
            )
        finally:
            os.close(read_end)

    def end(self) -> int:
        """Kill the command and all that came of it; returns when nothing is left, with the exit code."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        return self.process.wait()


def main(arguments: list[str]) -> None:
    """Entry of the keeper's process."""
    split = arguments.index("--")
    lifeline, flags, command = int(arguments[0]), arguments[1:split], arguments[split + 1 :]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    wakeup, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    status = _follow(_start(command), lifeline, wakeup, "--hold" in flags)
    _end_all()
    if "--remove" in flags:
        shutil.rmtree(flags[flags.index("--remove") + 1], ignore_errors=True)
    _exit_like(status)


def _start(command: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_DFL)
        os.execvpe(command[0], command, os.environ)
    finally:
        os._exit(127)


def _follow(child: int, lifeline: int, wakeup: int, hold: bool) -> int:
    """Wait until the command has ended (or, to hold, has failed) or the lifeline is cut. Returns the wait status."""
    status = signal.SIGKILL.value
    while True:
        ready, _, _ = select.select([lifeline, wakeup], [], [])
        if lifeline in ready:
            return status
        os.read(wakeup, 4096)
        for ended, how in _reaped():
            if ended == child:
                status = how
                if not hold or how != 0:
                    return status


def _reaped() -> list[tuple[int, int]]:
    """Children that have ended, with their wait status."""
    found = []
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found.append(ended)
    return found


def _end_all() -> None:
    """Kill children until there are none. The children of a killed child become ours, so that their turn comes too.

    Only own children are killed: nobody else reaps them, so their ids cannot have passed to strangers.
    """
    while True:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(POLL_SECONDS)


def _children() -> list[int]:
    if not Path("/proc/self/stat").is_file():
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        return [pid for pid, parent in pairs if parent == os.getpid()]
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The second field, the name, is in parentheses and may hold anything.
            parent = int(path.read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == os.getpid():
            found.append(int(path.parent.name))
    return found


def _exit_like(status: int) -> None:
    """End as the command did, so that the driver sees its exit code or signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(sys.argv[1:])
