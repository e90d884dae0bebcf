"""How much memory a device has."""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath

import psutil
import torch


def device_memory(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of the machine or the container that this process runs in."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return host_memory()


def host_memory() -> int:
    """Bytes of memory of this machine that this process may use: all of it, or what a control group allows."""
    return min([memory_of_machine(), *memory_limits()])


def memory_of_machine() -> int:
    """Bytes of memory of the whole machine."""
    return int(psutil.virtual_memory().total)


def memory_limits(root: Path = Path("/")) -> list[int]:
    """The bytes that control groups allow this process: its own group, and all that this one is in.

    A container sees its own group as the outermost one. A job of a batch system is in a group of the machine.
    """
    limits = []
    for group in _groups(root / "proc/self/cgroup"):
        for folder in (group, *group.parents):
            for name in (f"{folder}/memory.max", f"memory/{folder}/memory.limit_in_bytes"):
                with contextlib.suppress(OSError, ValueError):
                    limits.append(int((root / "sys/fs/cgroup" / name).read_text()))
    return limits


def _groups(listing: Path) -> list[PurePosixPath]:
    """The control groups that count this process's memory, beneath their hierarchies; at least the outermost one."""
    found = {PurePosixPath(".")}
    with contextlib.suppress(OSError):
        for line in listing.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                found.add(PurePosixPath(group.lstrip("/")))
    return sorted(found)
