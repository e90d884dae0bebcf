"""Ranks on the nodes of a Ray cluster. The only file that imports ray, but for the doctor's.

A placement group for each trial takes the cores and GPUs of all its ranks at once. The ranks themselves are fresh
processes that a host on their node starts: one small actor for each node and sweep, which imports no torch. Ray's state
is disposable: it moves JSON and tells when nodes die. What came of a trial is in the store.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from bench.launch.capacity import Cluster, Machine, Need, Seat
from bench.launch.embedded_cluster import EmbeddedCluster
from bench.launch.hosts import POLL_SECONDS, START_TIMEOUT_SECONDS, HostLauncher, HostLost
from bench.launch.launcher import NOTHING_LOST, Ended, NoMachinesError, Progress, Running, StopReason
from bench.launch.rank_host import END_SECONDS, RankHost
from bench.measure.provenance import SOURCE_ROOT
from bench.schema.record import Reason
from bench.schema.trial import JsonDict, TrialSpec

# Seconds between two questions for the nodes of the cluster.
LOOK_SECONDS = 2.0
# If nothing runs and no node holds the waiting trial, nodes are waited for so long, and longer if Ray starts them
# itself.
NODES_RETURN_SECONDS = 120.0
NODES_START_SECONDS = 900.0
# Ray ends a driver whose head is gone after 60 s, without a message. We tell it earlier.
HEAD_RETURN_SECONDS = 30.0
NODE_ANSWER_SECONDS = 5.0
# So many nodes of each kind are counted if the autoscaler sets no limit.
MOST_TO_COME = 256
# Seconds that threads and Ray have to end when the launcher is closed.
JOIN_SECONDS = 10.0
NODE_LABEL = "ray.io/node-id"
ACCELERATOR_LABEL = "ray.io/accelerator-type"
ACCELERATOR_RESOURCE = "accelerator_type:"
# A host that takes longer to answer is taken to be gone.
ANSWER_SECONDS = END_SECONDS + 30.0
CLOSE_ANSWER_SECONDS = 10.0
# Ray's words for an actor that its memory monitor has killed.
OUT_OF_MEMORY_SIGNS = ("running low on memory", "memory pressure", "out-of-memory", "(OOM)")
# Calls that may be in progress on a host at once: one waits for messages, the others start and end trials.
HOST_THREADS = 16


class NodeHost:
    """A :class:`RankHost` in an actor on another node, with the same methods."""

    def __init__(self, node_id: str, module: str | None, head: Head) -> None:
        self._node_id = node_id
        self._head = head
        self.node_is_gone = False
        self.closed = False
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
        """End the rank processes that the actor has started, and the actor."""
        with contextlib.suppress(HostLost):  # Its keepers do it then.
            self._ask(lambda actor: actor.close.remote(), CLOSE_ANSWER_SECONDS)
        self.closed = True
        ray.kill(self._actor)

    def _ask(self, call: Callable[[Any], Any], timeout_seconds: float | None) -> Any:
        try:
            return ray.get(call(self._actor), timeout=timeout_seconds)
        except ray.exceptions.GetTimeoutError as error:
            raise HostLost("node_lost", f"node {self._node_id} does not answer") from error
        except ray.exceptions.RayActorError as error:
            raise HostLost(self._why(error), f"node {self._node_id}: {_in_brief(error)}") from error
        except ray.exceptions.OutOfMemoryError as error:
            raise HostLost("out_of_memory", f"node {self._node_id}: {_in_brief(error)}") from error
        except ray.exceptions.RayTaskError:
            raise  # an error of our own code on that node
        except ray.exceptions.RayError as error:
            raise HostLost("worker_lost", f"node {self._node_id}: {_in_brief(error)}") from error

    def _why(self, error: ray.exceptions.RayActorError) -> Reason:
        if self.closed:
            return "worker_lost"
        if getattr(error, "preempted", False):
            return "preempted"
        if any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS):
            return "out_of_memory"
        self.node_is_gone = not self._answers()
        return "node_lost" if self.node_is_gone else "worker_lost"

    def _answers(self) -> bool:
        """Whether the node is there. Ray misses an actor at once, but its node only half a minute later."""
        node = (self._head.nodes() or {}).get(self._node_id)
        return node is not None and reachable(node.host, node.port)


class _Actor(RankHost):
    """A RankHost that knows its node."""

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
        self._head = Head()
        super().__init__(Cluster(self._head.machines() or []), outbox)
        self._module = module
        self._hosts: dict[str, NodeHost] = {}
        self._hosts_lock = threading.Lock()
        self._hearing: list[threading.Thread] = []
        self._groups: dict[str, PlacementGroup] = {}
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._gone: set[str] = set()  # nodes that Ray may still list for half a minute
        self._to_come = machines_to_come()  # kept from the last answer, since a head that is gone gives none
        self._asked: _AskedFor | None = None

    def poll(self, timeout_seconds: float) -> list[Progress | Ended]:
        if time.monotonic() > self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            there = self._head.machines()
            self._head.require_patience()
            if there is not None:  # A head that is silent has not lost its nodes.
                self.cluster.update([machine for machine in there if machine.node_id not in self._gone])
                self._to_come = machines_to_come()
        return super().poll(timeout_seconds)

    def check(self, trials: Sequence[TrialSpec]) -> None:
        if self._embedded is None:
            self.look_at_hosts(trials)

    def title(self, node_id: str) -> str:
        return f"{self.host(node_id).address()} ({node_id[:8]})"

    def shortage(self, spec: TrialSpec) -> str | None:
        return self.cluster.shortage(spec, self._to_come)

    def reserve(self, spec: TrialSpec) -> list[Seat] | None:
        return super().reserve(spec) if self._head.is_there else None  # Without a head, nothing can be started.

    def await_machines(self, spec: TrialSpec) -> None:
        if (missing := self.cluster.missing(spec)) is None:
            self._stop_asking()
            return
        if self._asked is None:
            patience = NODES_START_SECONDS if self._to_come else NODES_RETURN_SECONDS
            self._asked = _AskedFor(self.cluster.need(spec), patience)
        if (waited := time.monotonic() - self._asked.since) > (patience := self._asked.patience_seconds):
            raise NoMachinesError(
                f"no machines: {missing}, for {waited:.0f} s now (the limit is {patience:g} s); "
                f"issue the command again when there are more. {NOTHING_LOST}"
            )

    def _stop_asking(self) -> None:
        if self._asked is not None:
            remove_placement_group(self._asked.group)
            self._asked = None

    def launch(self, run: Running) -> None:
        self._stop_asking()  # The pending request may hold cores and GPUs that this trial needs.
        super().launch(run)

    def host(self, node_id: str) -> NodeHost:
        if node_id not in (self._head.nodes() or {}):
            raise HostLost("node_lost", f"node {node_id} is gone")
        with self._hosts_lock:
            if node_id not in self._hosts:
                host = self._hosts[node_id] = NodeHost(node_id, self._module, self._head)
                thread = threading.Thread(target=self._hear, args=(node_id, host), name=f"hear {node_id}", daemon=True)
                self._hearing.append(thread)
                thread.start()
            return self._hosts[node_id]

    def stop(self, trial_id: str, reason: StopReason) -> None:
        if not self._head.is_lost:  # Without a head, no node can be asked; their processes end by themselves.
            super().stop(trial_id, reason)

    def close(self) -> None:
        """Shut Ray down after all our threads have stopped using it, and end its cluster last."""
        if not self._head.is_lost:
            super().close()
            self._stop_asking()
            for host in list(self._hosts.values()):
                host.close()
            for thread in self._hearing:
                thread.join(JOIN_SECONDS)
            leaving = threading.Thread(target=ray.shutdown, name="ray.shutdown", daemon=True)
            leaving.start()
            leaving.join(JOIN_SECONDS)
        if self._embedded is not None:
            self._embedded.end()

    def _hear(self, node_id: str, host: NodeHost) -> None:
        self.receive(node_id, host)
        if host.node_is_gone:
            self._gone.add(node_id)
            self._next_look = 0.0
        with self._hosts_lock:
            del self._hosts[node_id]  # The next trial there gets a new one.

    def prepare(self, run: Running) -> list[list[str]] | None:
        need = run.need
        group = placement_group(
            _bundles(need),
            name=f"tuneoff:{run.trial_id}",
            bundle_label_selector=[{NODE_LABEL: seat.node_id} for seat in run.seats],
        )
        self._groups[run.trial_id] = group
        if not self._came(run, lambda: bool(group.wait(POLL_SECONDS))):
            return None
        if not need.gpus_per_rank:
            return [[] for _ in run.seats]
        look = ray.remote(num_cpus=0, num_gpus=need.gpus_per_rank)(_visible_gpus)
        places = [PlacementGroupSchedulingStrategy(group, rank) for rank in range(need.ranks)]
        asked = [look.options(scheduling_strategy=place).remote() for place in places]
        if not self._came(run, lambda: not ray.wait(asked, num_returns=len(asked), timeout=POLL_SECONDS)[1]):
            return None
        try:
            found: list[list[str]] = ray.get(asked)
        except ray.exceptions.RayError as error:
            raise HostLost("worker_lost", f"Ray's workers cannot look for GPUs: {_in_brief(error)}") from error
        return found

    def _came(self, run: Running, is_there: Callable[[], bool]) -> bool:
        """Wait for what Ray gives to a trial. False: the trial was stopped meanwhile.

        Raises:
            HostLost: A node is gone, or it takes too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not is_there():
            if run.stop_reason is not None:
                return False
            nodes = self._head.nodes()
            if nodes is not None and (gone := {seat.node_id for seat in run.seats} - nodes.keys()):
                raise HostLost("node_lost", f"node {gone.pop()} is gone")
            if time.monotonic() > deadline:
                message = f"others hold the cores or GPUs of this trial for {START_TIMEOUT_SECONDS:g} s already"
                raise HostLost("start_timed_out", message)
        return True

    def release(self, run: Running) -> None:
        if (group := self._groups.pop(run.trial_id, None)) is not None:
            remove_placement_group(group)


@dataclass(frozen=True)
class Node:
    """A living node, as the head knows it."""

    host: str
    port: int  # of its raylet
    resources: Mapping[str, float]
    labels: Mapping[str, str]


class Head:
    """The control store of the cluster that this process has joined.

    It is asked through a client of its own, whose calls fail. Those behind ``ray.nodes()`` end the process without a
    word of ours when a new control store answers at the address of the old one. Behind Ray's client (``ray://``) the
    store cannot be asked, counts as there, and the client asks for us.
    """

    def __init__(self) -> None:
        behind_client = ray.util.client.ray.is_connected()
        self.address = "" if behind_client else str(ray.get_runtime_context().gcs_address)
        self._store: Any = None if behind_client else ray._raylet.GcsClient(address=self.address)
        self._silent_since: float | None = None
        self._is_another = False
        self.is_lost = False

    @property
    def is_there(self) -> bool:
        """Whether the head gave the last answer that it was asked for."""
        return self._silent_since is None and not self._is_another

    def nodes(self) -> dict[str, Node] | None:
        """The living nodes, by id; None if the head does not answer."""
        if self._store is None:
            return {
                node["NodeID"]: Node(
                    node["NodeManagerAddress"], node["NodeManagerPort"], node["Resources"], node.get("Labels") or {}
                )
                for node in ray.nodes()
                if node["Alive"]
            }
        try:
            found = self._store.get_all_node_info(timeout=NODE_ANSWER_SECONDS)
        except ray.exceptions.AuthenticationError:  # Another cluster answers at the address.
            self._is_another = True
            return None
        except ray.exceptions.RayError:
            self._silent_since = self._silent_since or time.monotonic()
            return None
        self._silent_since = None
        return {
            node_id.hex(): Node(
                info.node_manager_address, info.node_manager_port, dict(info.resources_total), dict(info.labels)
            )
            for node_id, info in found.items()
            if info.state == info.ALIVE
        }

    def machines(self) -> list[Machine] | None:
        """The machines that can run ranks; None if the head does not answer."""
        nodes = self.nodes()
        if nodes is None:
            return None
        return [
            Machine(
                int(node.resources.get("CPU", 0)),
                int(node.resources.get("GPU", 0)),
                node_id,
                accelerator_of(node.labels, node.resources),
            )
            for node_id, node in sorted(nodes.items())
        ]

    def require_patience(self) -> None:
        """Check that one may still wait for its answers.

        Raises:
            NoMachinesError: It has not answered for longer than one waits, or another one has taken its place.
        """
        if self._is_another:
            self.is_lost = True
            raise NoMachinesError(
                f"the head of the Ray cluster at {self.address} has started anew, and knows nothing of this driver; "
                f"issue the command again. {NOTHING_LOST}"
            )
        if self._silent_since is not None and time.monotonic() - self._silent_since > HEAD_RETURN_SECONDS:
            self.is_lost = True
            raise NoMachinesError(
                f"the head of the Ray cluster at {self.address} has not answered for {HEAD_RETURN_SECONDS:g} s; issue "
                f"the command again when it is back. {NOTHING_LOST}"
            )


class _AskedFor:
    """A placement group for nodes that are not there, by which a cluster with an autoscaler is asked for some."""

    def __init__(self, need: Need, patience_seconds: float) -> None:
        self.since = time.monotonic()
        self.patience_seconds = patience_seconds
        labels = [{ACCELERATOR_LABEL: need.accelerator}] * need.ranks if need.accelerator else None
        self.group = placement_group(_bundles(need), name="tuneoff:more-nodes", bundle_label_selector=labels)


def _bundles(need: Need) -> list[dict[str, float]]:
    """The needs of a trial's ranks as bundles of a placement group."""
    bundle = {"CPU": need.cpus_per_rank, **({"GPU": need.gpus_per_rank} if need.gpus_per_rank else {})}
    return [bundle] * need.ranks


def machines_to_come() -> list[Machine]:
    """The machines that an autoscaler of the cluster could start; none without an autoscaler."""
    config = ray._private.state.state.get_cluster_config()
    found: list[Machine] = []
    for kind in config.node_group_configs if config is not None else ():
        count = MOST_TO_COME if kind.max_count < 0 else min(MOST_TO_COME, kind.max_count)
        size = int(kind.resources.get("CPU", 0)), int(kind.resources.get("GPU", 0))
        label = kind.labels.get(ACCELERATOR_LABEL, "") if hasattr(kind, "labels") else ""
        found.extend(Machine(*size, f"{kind.name} {number}", label) for number in range(count))
    return found


def accelerator_of(labels: Mapping[str, str], resources: Mapping[str, float]) -> str:
    """The type of a node's GPUs: its label, or as Ray names it among the resources of a node without one."""
    named = (name.removeprefix(ACCELERATOR_RESOURCE) for name in resources if name.startswith(ACCELERATOR_RESOURCE))
    return labels.get(ACCELERATOR_LABEL) or next(named, "")


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
    # Ray's workers would search the driver's folder for modules before all others.
    with contextlib.chdir(SOURCE_ROOT):
        ray.init(address=address, **options)


def reachable(host: str, port: int) -> bool:
    """Whether a process listens at the address."""
    try:
        socket.create_connection((host, port), timeout=NODE_ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _in_brief(error: Exception) -> str:
    """What Ray says: its first line, and its last one, which is the error itself where our own code has raised one."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return " ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))
