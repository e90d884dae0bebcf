"""How much memory a device has."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import torch


def device_memory(device: torch.device) -> int:
    """Bytes of memory of a GPU, or of the machine or the container that this process runs in."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total: int = psutil.virtual_memory().total
    limit = memory_limit()
    return total if limit is None else min(total, limit)


def memory_limit() -> int | None:
    """Bytes of memory that a control group allows this process."""
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text())
    return None
