"""Runs ranks as processes of this machine, for laptops, tests and debugging. No Ray."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from bench.launch.capacity import Cluster, Machine
from bench.launch.hosts import HostLauncher
from bench.launch.launcher import LauncherOptions, Running
from bench.launch.rank_host import RankHost
from bench.measure.provenance import usable_cores
from bench.plugins.source import PluginSource


class LocalLauncher(HostLauncher):
    """Starts the ranks of a trial on this machine.

    Args:
        outbox: Where attempts wait for the store.
        machine: What may be used; None: all that this process may use.
        host: What starts the ranks; None: fresh processes, forked from one that has imported the libraries.
    """

    name = "local"

    def __init__(self, outbox: Path, machine: Machine | None = None, host: RankHost | None = None) -> None:
        super().__init__(Cluster([machine or this_machine()]), outbox)
        self._host = host or RankHost()
        threading.Thread(target=self.receive, args=("local", self._host), daemon=True).start()

    def host(self, node_id: str) -> RankHost:
        return self._host

    def close(self) -> None:
        super().close()
        self._host.close()

    def prepare(self, run: Running) -> list[list[str]]:
        return [[visible_gpu(gpu) for gpu in seat.gpus] for seat in run.seats]


class LocalOptions(LauncherOptions):
    """The local launcher has no options."""

    def make(self, outbox: Path, plugins: Sequence[PluginSource]) -> LocalLauncher:
        return LocalLauncher(outbox)


def this_machine() -> Machine:
    """The cores and GPUs that this process may use."""
    import torch

    gpus = torch.cuda.device_count()
    return Machine(usable_cores(), gpus, accelerator=torch.cuda.get_device_name(0) if gpus else "")


def visible_gpu(index: int) -> str:
    """The name, in ``CUDA_VISIBLE_DEVICES`` of a rank, of a GPU that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)
