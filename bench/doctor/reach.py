"""An all-reduce between processes of several machines, by gloo or NCCL, as DeepSpeed's ranks do it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from bench.rank.rendezvous import join_store, open_store

REACH_TIMEOUT_SECONDS = 60.0


def listen(host: str) -> tuple[Any, int]:
    """Open a rendezvous at this address of this machine; returns it and its port."""
    store = open_store(host, REACH_TIMEOUT_SECONDS)
    return store, int(store.port)


def all_reduce(backend: str, host: str, port: int, rank: int, ranks: int, store: Any = None) -> float:
    """Add up rank + 1 over all ranks.

    Args:
        backend: ``gloo`` or ``nccl``.
        host: Address of the rendezvous.
        port: Its port.
        rank: Of this process.
        ranks: How many there are.
        store: The rendezvous itself, in the process that opened it.

    Raises:
        RuntimeError: A rank cannot be reached within the time limit.
    """
    import torch
    import torch.distributed as dist

    timeout = timedelta(seconds=REACH_TIMEOUT_SECONDS)
    if store is None:
        store = join_store(host, port, REACH_TIMEOUT_SECONDS)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)
    try:
        number = torch.tensor([rank + 1.0], device="cuda" if backend == "nccl" else "cpu")
        dist.all_reduce(number)
        return float(number.item())
    finally:
        dist.destroy_process_group()
