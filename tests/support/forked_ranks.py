"""Ranks of tests: forks of a process that has imported the libraries and does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from typing import Any

import torch.multiprocessing

LIBRARIES = ["torch", "transformers", "deepspeed", "bench.rank.trial", "bench.plugins.registry"]


def forking() -> ForkServerContext:
    """Starts processes in a fraction of a second, once the first has waited for the imports."""
    context = get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context


def run_ranks(function: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Call ``function(rank, *arguments)`` in so many processes, and wait for them.

    Raises:
        ProcessRaisedException: One of them failed; the message has its traceback.
    """
    forking()
    torch.multiprocessing.start_processes(function, arguments, nprocs=ranks, start_method="forkserver")
