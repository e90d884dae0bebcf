"""``tuneoff run`` for trials that train nothing, but whose ranks are real processes: ``light_driver.py FOLDER TRIALS``.

Prints the ids of the trials that it was asked for and leaves their records in FOLDER.
"""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from fakes import FakeLauncher, trial

from bench.driver.observer import Observer
from bench.driver.schedule import Schedule
from bench.driver.status import StatusBoard
from bench.driver.stopping import stoppable
from bench.launch.capacity import Machine
from bench.launch.embedded_cluster import EmbeddedCluster
from bench.launch.launcher import Launcher, NoMachinesError, Progress
from bench.launch.local import LocalLauncher
from bench.launch.rank_host import RankHost
from bench.launch.remote_host import RemoteHost
from bench.launch.ssh import ListedHost, SshLauncher, SshOptions
from bench.launch.wire import Setup
from bench.measure.leaving import leave
from bench.store.records import StorageError, Store, StoreError
from bench.store.recover import recover
from bench.store.retry import RetryPolicy

PROGRAMS = Path(__file__).parents[1]
SUPPORT = PROGRAMS.parent / "support"


class FullDisk(Observer):
    """Limits the size of files that this process can write, from the first sign of a rank on."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes

    def progressed(self, progress: Progress) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.max_bytes, self.max_bytes))


def launcher_on_hosts(outbox: Path, command: str) -> Launcher:
    """A launcher with ranks on the hosts a and b, which a stand-in command creates."""
    options = SshOptions(hosts="a:1,b:1", host_command=command)
    paths = [str(PROGRAMS), str(SUPPORT)]
    setup = Setup(name="", paths=paths, module="chaos.light_rank")

    def open_host(name: str) -> RemoteHost:
        return RemoteHost(name, options.command(name), outbox.parent / f"{name}.log")

    return SshLauncher("ssh", outbox, [ListedHost("a", 1), ListedHost("b", 1)], open_host, setup)


def launcher_for(outbox: Path) -> Launcher:
    """The launcher that the environment names: no ranks, ranks on hosts, on a Ray cluster, or in processes here."""
    machine = Machine(cpus=int(os.environ.get("LIGHT_CPUS", "2")), gpus=0)
    if os.environ.get("LIGHT_FAKE"):
        return FakeLauncher(outbox, machine)
    address: str | EmbeddedCluster | None = os.environ.get("LIGHT_ADDRESS")
    if os.environ.get("LIGHT_EMBEDDED"):
        address = EmbeddedCluster()
    if command := os.environ.get("LIGHT_HOST_COMMAND"):
        return launcher_on_hosts(outbox, command)
    if address is None:
        return LocalLauncher(outbox, machine, RankHost("chaos.light_rank"))
    from bench.launch import ray_cluster
    from bench.launch.ray_cluster import RayLauncher

    if patience := os.environ.get("LIGHT_PATIENCE_SECONDS"):
        ray_cluster.NODES_RETURN_SECONDS = ray_cluster.HEAD_RETURN_SECONDS = float(patience)
    ours = {name: value for name, value in os.environ.items() if name.startswith(("LIGHT_", "TUNEOFF_", "TMPDIR"))}
    sources = [PROGRAMS / "chaos", SUPPORT / "fakes.py"]
    return RayLauncher(outbox, address, sources, {"env_vars": ours}, "chaos.light_rank")


def main() -> int:
    store = Store(Path(sys.argv[1]))
    resources = {
        "cpus_per_rank": 1,
        "device": "cpu",
        "ranks": int(os.environ.get("LIGHT_RANKS", "1")),
        "hang_seconds": float(os.environ.get("LIGHT_HANG_SECONDS", "60")),
    }
    specs = [trial(seed=seed, **resources) for seed in range(int(sys.argv[2]))]
    sys.stdout.write("\n".join(spec.trial_id for spec in specs) + "\n")
    try:
        with store.locked():
            recover(store)
            pending = [spec for spec in specs if not store.has(spec.trial_id)]
            launcher = launcher_for(store.outbox)
            observers: list[Observer] = [StatusBoard(store.root, "light")]
            if full := os.environ.get("LIGHT_DISK_BYTES"):
                observers.append(FullDisk(int(full)))
            schedule = Schedule(store, launcher, "light", observers, retries=RetryPolicy(backoff_seconds=0.1))
            try:
                with stoppable(schedule.drain, lambda message: sys.stderr.writelines([message, "\n"])):
                    schedule.run(pending)
            finally:
                launcher.close()
    except KeyboardInterrupt:
        return 130
    except StoreError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1 if isinstance(error, StorageError) else 2
    except NoMachinesError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 130 if schedule.draining else 0


if __name__ == "__main__":
    leave(main())
