"""Ends a command's whole process tree when whoever asked for it is gone, however it went.

A driver that is killed cannot clean up, and what it started may hang, be stopped, or be just about to start something
else. So the driver starts a keeper, and the keeper starts the command. The keeper reads a pipe that only the driver can
write to: when the driver dies, the kernel closes the pipe. On Linux the keeper is the subreaper of all that descends
from it: whatever loses its parent becomes the keeper's child, so that "no children left" means nobody is left.

As a script this file needs the standard library only:
``python -I -S keeper.py --lifeline DESCRIPTOR [--hold] [--remove FOLDER] [--tell-exit DESCRIPTOR] -- COMMAND...``, or
``--adopt PID`` in place of the command, for a process that has forked a child and becomes its keeper.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.01
# A process that waits for a disk that does not answer cannot be killed, so that waiting for its end has a limit.
END_SECONDS = 30.0
# Ctrl-C and the signals of batch systems are meant for the driver, which then ends what it has started.
NOT_FOR_KEEPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class KeptProcess:
    """A command under a keeper.

    Args:
        command: What to run.
        environment: All environment variables of the command.
        flags: Of the keeper: ``--hold`` where the command ends after it has started something (a daemon), which is kept
            until :meth:`end`; ``--remove FOLDER`` deletes a folder when all processes are gone.
        pass_fds: Descriptors that the command needs.
        options: Standard streams and the like, as for ``subprocess.Popen``.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        flags: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
        **options: Any,
    ) -> None:
        self._cutting = threading.Lock()
        lifeline, self._lifeline = os.pipe()  # exec closes it in every other child of this process
        try:
            self.process = subprocess.Popen(
                [*script(lifeline), *flags, "--", *command],
                env=dict(environment),
                pass_fds=[lifeline, *pass_fds],
                start_new_session=True,
                **options,
            )
        finally:
            os.close(lifeline)

    def cut(self) -> None:
        """Ask for the end of the command and all its descendants. Any thread may call it, more than once."""
        with self._cutting:
            if self._lifeline >= 0:
                os.close(self._lifeline)
                self._lifeline = -1

    def end(self) -> None:
        """Kill the command and all its descendants, and wait until none is left or the system cannot kill them."""
        self.cut()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)


def script(lifeline: int) -> list[str]:
    """The command of a keeper."""
    return [sys.executable, "-I", "-S", __file__, "--lifeline", str(lifeline)]


def become_subreaper() -> None:
    """Make this process the parent of every descendant that loses its own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def weigh_session_as_niced() -> None:
    """Give this process's session the share of processors that its nice value stands for: ``nice`` holds for ranks.

    Linux weighs sessions against each other, and processes only within their session (``man 7 sched``, autogroup). A
    keeper's session is a new one, which begins with the full share. Elsewhere the nice value is enough.
    """
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    if niceness > 0:
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(f"{niceness}\n", encoding="ascii")


def main() -> None:
    """Entry of the keeper's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--remove", type=Path)
    parser.add_argument("--tell-exit", type=int)
    parser.add_argument("--adopt", type=int)
    parser.add_argument("command", nargs="*")
    arguments = parser.parse_args()
    become_subreaper()
    weigh_session_as_niced()
    for number in NOT_FOR_KEEPERS:
        signal.signal(number, signal.SIG_IGN)
    wakeup, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    child = arguments.adopt or _start(arguments.command)
    os.write(write_end, b"0")  # A child may have ended before the handler was installed.
    status = _follow(child, arguments.lifeline, wakeup, arguments.hold)
    _end_all()
    if arguments.remove is not None:
        shutil.rmtree(arguments.remove, ignore_errors=True)
    exit_code = os.waitstatus_to_exitcode(status)
    if arguments.tell_exit is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(arguments.tell_exit, b'\n{"exit": %d}\n' % exit_code)
    sys.exit(exit_code & 0xFF)


def _start(command: Sequence[str]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        for number in NOT_FOR_KEEPERS:
            signal.signal(number, signal.SIG_DFL)
        os.execvpe(command[0], list(command), os.environ)
    finally:
        os._exit(127)


def _follow(child: int, lifeline: int, wakeup: int, hold: bool) -> int:
    """Wait until the command has ended (with ``hold``, has failed) or the lifeline is cut. Returns the wait status."""
    while True:
        ready, _, _ = select.select([lifeline, wakeup], [], [])
        if lifeline in ready:
            return signal.SIGKILL
        os.read(wakeup, 4096)
        for ended, status in _reaped():
            if ended == child and (status != 0 or not hold):
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
    if sys.platform != "linux":
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False).stdout
        return [int(pid) for pid, parent in map(str.split, listed.splitlines()) if int(parent) == os.getpid()]
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


if __name__ == "__main__":
    main()
