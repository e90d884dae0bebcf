"""Finds what our programs leave behind on a machine that others use too: listening ports, files in /dev/shm."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
LOOK_SECONDS = 0.5
# The fourth column of /proc/net/tcp.
LISTENS = "0A"


class Traces:
    """Follows the processes of one fault.

    A port is recognised by its socket, which only one process can have. A port that others open later is therefore not
    ours. A new file in /dev/shm is a stranger's if one of their processes has it open or mapped, and else ours.

    Args:
        processes: Those that are followed, whenever it is called.
    """

    def __init__(self, processes: Callable[[], list[int]]) -> None:
        self._processes = processes
        self._sockets: set[str] = set()
        self._before = set(_names(SHARED_MEMORY))
        self._done = threading.Event()
        threading.Thread(target=self._follow, name="traces", daemon=True).start()

    def close(self) -> None:
        """Follow no longer."""
        self._done.set()

    def ports(self) -> int:
        """How many of the sockets on which our processes have listened still listen."""
        return len(self._sockets & _listening())

    def shared_memory(self) -> list[str]:
        """New files in /dev/shm that no stranger uses."""
        new = set(_names(SHARED_MEMORY)) - self._before
        if not new:
            return []
        ours = set(self._processes())
        used = {inode for pid in _pids() if pid not in ours for inode in _opened(pid)}
        return sorted(name for name in new if _inode(SHARED_MEMORY / name) not in used | {None})

    def _follow(self) -> None:
        while not self._done.wait(LOOK_SECONDS):
            listening = _listening()
            for pid in self._processes():
                self._sockets.update(_sockets_of(pid) & listening)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _pids() -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*"):
        yield int(path.name)


def _listening() -> set[str]:
    """Inodes of all sockets of this machine that listen."""
    found = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            rows = Path("/proc/net", table).read_text().splitlines()[1:]
            found.update(row.split()[9] for row in rows if row.split()[3] == LISTENS)
    return found


def _links(pid: int) -> Iterator[tuple[Path, str]]:
    """What a process has open: the link in /proc, and what it points to."""
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                yield path, os.readlink(path)  # noqa: PTH115 - "socket:[123]" is no path


def _sockets_of(pid: int) -> set[str]:
    return {link[len("socket:[") : -1] for _, link in _links(pid) if link.startswith("socket:[")}


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _opened(pid: int) -> Iterator[int]:
    """Inodes of files in /dev/shm that a process has open or mapped.

    Not their names: a semaphore is mapped under a name of the moment before the C library gives it its own.
    """
    for path, link in _links(pid):
        if _is_shared_memory(link) and (inode := _inode(path)) is not None:
            yield inode
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            _, _, _, _, inode, *name = line.split(maxsplit=5)
            if name and _is_shared_memory(name[0]):
                yield int(inode)


def _is_shared_memory(name: str) -> bool:
    return name.startswith(f"{SHARED_MEMORY}{os.sep}")
