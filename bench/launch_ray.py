"""Ranks on the nodes of a Ray cluster. The only file that imports ray, but for the doctor's.

A placement group for each trial takes the cores and GPUs of all its ranks at once. The ranks themselves are fresh
processes that a host on their node starts: one small actor for each node and sweep, which imports no torch. Ray's state
is disposable: it moves JSON and tells when nodes die. What came of a trial is in the store.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from bench.capacity import Cluster, Machine
from bench.config import ConfigError
from bench.embedded_cluster import EmbeddedCluster
from bench.launch import Ended, Progress, Running
from bench.launch_hosts import POLL_SECONDS, START_TIMEOUT_SECONDS, HostLauncher, HostLost
from bench.provenance import SOURCE_ROOT
from bench.rank_host import END_SECONDS, RankHost
from bench.record import Reason
from bench.spec import JsonDict, TrialSpec

# Between two looks at which nodes there are.
LOOK_SECONDS = 2.0
# A trial that fitted before nodes were lost waits so long for others, before it counts as infeasible.
NODES_RETURN_SECONDS = 120.0
NODE_ANSWER_SECONDS = 5.0
NODE_LABEL = "ray.io/node-id"
# An answer of a host that takes longer is not to be expected any more.
ANSWER_SECONDS = END_SECONDS + 30.0
# Calls that may be in progress on a host at once: one waits for messages, the others start and end trials.
HOST_THREADS = 16


class NodeHost:
    """A :class:`RankHost` in an actor on another node, with the same methods."""

    def __init__(self, node_id: str, module: str | None) -> None:
        self._node_id = node_id
        self.node_is_gone = False
        actor_class = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=HOST_THREADS)(_Actor)
        strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
        self._actor: Any = actor_class.options(scheduling_strategy=strategy).remote(module)

    def warm(self, environment: dict[str, str]) -> None:
        self._ask(lambda actor: actor.warm.remote(environment), ANSWER_SECONDS)

    def start(self, attempt_id: str, job: JsonDict, environment: dict[str, str]) -> None:
        self._ask(lambda actor: actor.start.remote(attempt_id, job, environment), ANSWER_SECONDS)

    def send(self, attempt_id: str, rank: int, line: str) -> None:
        self._ask(lambda actor: actor.send.remote(attempt_id, rank, line), ANSWER_SECONDS)

    def poll(self, seconds: float) -> list[JsonDict]:
        found: list[JsonDict] = self._ask(lambda actor: actor.poll.remote(seconds), None)
        return found

    def end(self, attempt_id: str) -> bool:
        return bool(self._ask(lambda actor: actor.end.remote(attempt_id), ANSWER_SECONDS))

    def files(self, attempt_id: str) -> dict[str, int]:
        found: dict[str, int] = self._ask(lambda actor: actor.files.remote(attempt_id), ANSWER_SECONDS)
        return found

    def read(self, attempt_id: str, name: str, offset: int) -> bytes:
        return bytes(self._ask(lambda actor: actor.read.remote(attempt_id, name, offset), ANSWER_SECONDS))

    def clear(self, attempt_id: str) -> None:
        self._ask(lambda actor: actor.clear.remote(attempt_id), ANSWER_SECONDS)

    def missing(self, paths: Sequence[str], modules: Sequence[str]) -> list[str]:
        """Which of these files, folders and modules the node lacks."""
        found: list[str] = self._ask(lambda actor: actor.missing.remote(paths, modules), ANSWER_SECONDS)
        return found

    def address(self) -> str:
        return str(self._ask(lambda actor: actor.address.remote(), ANSWER_SECONDS))

    def close(self) -> None:
        """End the actor, and with it the rank processes that it has started."""
        ray.kill(self._actor)

    def _ask(self, call: Callable[[Any], Any], timeout_seconds: float | None) -> Any:
        try:
            return ray.get(call(self._actor), timeout=timeout_seconds)
        except ray.exceptions.GetTimeoutError as error:
            raise HostLost("node_lost", f"node {self._node_id} does not answer") from error
        except ray.exceptions.RayActorError as error:
            raise HostLost(self._why(error), f"node {self._node_id}: {_first_lines(error)}") from error
        except ray.exceptions.OutOfMemoryError as error:
            raise HostLost("worker_lost", f"node {self._node_id}: {_first_lines(error)}") from error

    def _why(self, error: ray.exceptions.RayActorError) -> Reason:
        if getattr(error, "preempted", False):
            return "preempted"
        self.node_is_gone = not self._answers()
        return "node_lost" if self.node_is_gone else "worker_lost"

    def _answers(self) -> bool:
        """Whether the node is there. Ray misses an actor at once, its node only half a minute later."""
        node = alive_nodes().get(self._node_id)
        if node is None:
            return False
        try:
            address = node["NodeManagerAddress"], node["NodeManagerPort"]
            socket.create_connection(address, timeout=NODE_ANSWER_SECONDS).close()
        except OSError:
            return False
        return True


class _Actor(RankHost):
    """A RankHost that knows where it is."""

    def address(self) -> str:
        return str(ray.util.get_node_ip_address())


def _visible_gpus() -> list[str]:
    return [str(gpu) for gpu in ray.get_gpu_ids()]


class RayLauncher(HostLauncher):
    """Starts the ranks of a trial on a Ray cluster.

    Args:
        outbox: Folder for attempts on their way into the store; best on storage that the nodes share.
        cluster: Where ranks run: the address of a running cluster, to which the code of ``bench`` and ``methods`` is
            sent, or one that this process has started and that ends with it.
        plugins: Packages and files that are sent to a running cluster too.
        runtime_env: Further options of Ray's runtime environment, for a running cluster.
        module: What runs a rank; see :class:`RankHost`.
    """

    name = "ray"

    def __init__(
        self,
        outbox: Path,
        cluster: str | EmbeddedCluster,
        plugins: Sequence[Path] = (),
        runtime_env: JsonDict | None = None,
        module: str | None = None,
    ) -> None:
        self._embedded = cluster if isinstance(cluster, EmbeddedCluster) else None
        join(cluster, plugins, runtime_env)
        super().__init__(Cluster(machines()), outbox)
        self._module = module
        self._hosts: dict[str, NodeHost] = {}
        self._hosts_lock = threading.Lock()
        self._groups: dict[str, PlacementGroup] = {}
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._lost_nodes_at = -math.inf
        self._gone: set[str] = set()  # nodes that Ray may still list for half a minute

    def poll(self, timeout_seconds: float) -> list[Progress | Ended]:
        if time.monotonic() > self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            before = len(self.cluster.machines)
            self.cluster.update([machine for machine in machines() if machine.node_id not in self._gone])
            if len(self.cluster.machines) < before:
                self._lost_nodes_at = time.monotonic()
        return super().poll(timeout_seconds)

    def check(self, trials: Sequence[TrialSpec]) -> None:
        if self._embedded is not None:
            return
        paths = sorted({str(path.absolute()) for trial in trials for path in trial.local_paths})
        if any(trial.checkpoint_every_steps is not None for trial in trials):
            paths.append(str(self.outbox.parent.resolve()))
        targets = {target for trial in trials for target in (trial.method.target, trial.task.target)}
        modules = sorted({target.partition(":")[0] for target in targets})
        for machine in self.cluster.machines:
            if not machine.cpus:
                continue
            with contextlib.suppress(HostLost):
                host = self.host(machine.node_id)
                if lacking := host.missing(paths, modules):
                    raise ConfigError(
                        f"node {host.address()} ({machine.node_id[:8]}) lacks {', '.join(lacking)}; all nodes need "
                        "models and data under the same path as here, e.g. on shared storage, and what plugins import"
                    )

    def shortage(self, spec: TrialSpec) -> str | None:
        if time.monotonic() - self._lost_nodes_at < NODES_RETURN_SECONDS:
            return None
        return super().shortage(spec)

    def host(self, node_id: str) -> NodeHost:
        if node_id not in alive_nodes():
            raise HostLost("node_lost", f"node {node_id} is gone")
        with self._hosts_lock:
            if node_id not in self._hosts:
                host = self._hosts[node_id] = NodeHost(node_id, self._module)
                threading.Thread(target=self._hear, args=(node_id, host), daemon=True).start()
            return self._hosts[node_id]

    def close(self) -> None:
        super().close()
        for host in list(self._hosts.values()):
            host.close()
        ray.shutdown()
        if self._embedded is not None:
            self._embedded.end()

    def _hear(self, node_id: str, host: NodeHost) -> None:
        self.receive(node_id, host)
        if host.node_is_gone:
            self._gone.add(node_id)
            self._next_look = 0.0
        with self._hosts_lock:
            del self._hosts[node_id]  # The next trial there gets a new one.

    def _prepare(self, run: Running) -> list[list[str]] | None:
        need = run.need
        bundle = {"CPU": need.cpus_per_rank, **({"GPU": need.gpus_per_rank} if need.gpus_per_rank else {})}
        group = placement_group(
            [bundle] * need.ranks,
            name=f"tuneoff:{run.trial_id}",
            bundle_label_selector=[{NODE_LABEL: seat.node_id} for seat in run.seats],
        )
        self._groups[run.trial_id] = group
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not group.wait(POLL_SECONDS):
            if run.stop_reason is not None:
                return None
            if gone := {seat.node_id for seat in run.seats} - alive_nodes().keys():
                raise HostLost("node_lost", f"node {gone.pop()} is gone")
            if time.monotonic() > deadline:
                message = f"others hold the cores or GPUs of this trial for {START_TIMEOUT_SECONDS:g} s already"
                raise HostLost("start_timed_out", message)
        if not need.gpus_per_rank:
            return [[] for _ in run.seats]
        look = ray.remote(num_cpus=0, num_gpus=need.gpus_per_rank)(_visible_gpus)
        places = [PlacementGroupSchedulingStrategy(group, rank) for rank in range(need.ranks)]
        found: list[list[str]] = ray.get([look.options(scheduling_strategy=place).remote() for place in places])
        return found

    def _release(self, run: Running) -> None:
        if (group := self._groups.pop(run.trial_id, None)) is not None:
            remove_placement_group(group)


def join(cluster: str | EmbeddedCluster, plugins: Sequence[Path] = (), runtime_env: JsonDict | None = None) -> None:
    """Make this process a driver of a cluster; see :class:`RayLauncher`."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if isinstance(cluster, str):
        address = cluster
        modules = [SOURCE_ROOT / "bench", SOURCE_ROOT / "methods", *plugins]
        sent = {"py_modules": [str(module) for module in modules]}
        options["runtime_env"] = {**(runtime_env or {}), **sent}
    else:
        address = cluster.address()
    ray.init(address=address, **options)


def alive_nodes() -> dict[str, JsonDict]:
    """What Ray knows of each node that lives, by its id."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def machines() -> list[Machine]:
    """What there is to run ranks on."""
    found = []
    for node_id, node in sorted(alive_nodes().items()):
        resources = node["Resources"]
        found.append(Machine(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)), node_id))
    return found


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:3])
