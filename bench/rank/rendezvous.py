"""The rendezvous of ranks: a store that rank 0 opens and the others join. torch is imported only when it is needed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any


def open_store(host: str, timeout_seconds: float) -> Any:
    """Open a store at this address of this machine, on a port that the system chooses."""
    return _store(host, 0, True, timeout_seconds)


def join_store(host: str, port: int, timeout_seconds: float) -> Any:
    """Join the store that another rank has opened."""
    return _store(host, port, False, timeout_seconds)


def _store(host: str, port: int, is_master: bool, timeout_seconds: float) -> Any:
    from torch._C._distributed_c10d import TCPStore

    return TCPStore(host, port, is_master=is_master, wait_for_workers=False, timeout=timedelta(seconds=timeout_seconds))
