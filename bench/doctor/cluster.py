"""A Ray cluster: who may join it, its nodes one by one, and whether they reach one another. Imports ray when asked.

Joins as any driver does, visits every node with an actor that takes no cores, and leaves. It never stops a cluster that
it did not start.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.doctor.finding import Finding, ok, problem, warning
from bench.doctor.machine import host_name, look_at_machine
from bench.doctor.packages import Expected
from bench.doctor.reach import REACH_TIMEOUT_SECONDS, all_reduce, listen
from bench.launch.cluster_access import (
    Address,
    ask_for_token,
    check_reachable,
    parse_address,
    probe,
    readable_by_others,
    token_file,
)
from bench.launch.embedded_cluster import ClusterError, EmbeddedCluster
from bench.measure.provenance import cpu_name, sources_sha256
from bench.schema.trial import JsonDict
from bench.schema.validation import ConfigError

VISIT_TIMEOUT_SECONDS = 300.0
CLOCK_QUESTIONS = 5
FAR_APART_SECONDS = 1.0


@dataclass(frozen=True)
class Node:
    """A node of the cluster and the actor that visits it."""

    node_id: str
    name: str
    gpus: int
    device: str  # type of its GPUs; of its cores if it has none
    visitor: Any


class Visitor:
    """An actor that checks its node. It takes and returns JSON."""

    def name(self) -> str:
        return host_name()

    def processor(self) -> str:
        return cpu_name()

    def address(self) -> str:
        import ray

        return str(ray.util.get_node_ip_address())

    def now(self) -> float:
        return time.time()

    def code(self) -> str:
        return sources_sha256()

    def look(self, expected: JsonDict) -> list[JsonDict]:
        found = look_at_machine(Expected.model_validate(expected), results=None)
        return [finding.model_dump() for finding in found]

    def listen(self, host: str) -> int:
        self._store, port = listen(host)
        return port

    def all_reduce(self, backend: str, host: str, port: int, rank: int, ranks: int) -> float:
        return all_reduce(backend, host, port, rank, ranks, getattr(self, "_store", None))


def look_at_cluster(text: str | None, expected: Expected) -> Iterator[Finding]:
    """Every check of a cluster; without an address, of the one that ``run`` would start on this machine."""
    try:
        cluster = EmbeddedCluster() if text is None else parse_address(text)
        if isinstance(cluster, Address):
            yield from check_token_file()
            ask_for_token(cluster)
            check_reachable(cluster)
            yield from check_openness(cluster)
        with _joined(cluster) as ray:
            started = "an embedded cluster starts, with a token of its own" if text is None else f"joined {text}"
            yield ok("Ray", f"{ray.__version__}, {started}")
            yield from _look_at_nodes(ray, expected, local=text is None)
    except (ConfigError, ClusterError, ConnectionError, RuntimeError) as error:
        message = " ".join(str(error).split())
        yield problem("Ray", message, "see docs/use/cluster.md, or run on this machine alone with --launcher local")


@contextmanager
def _joined(cluster: Address | EmbeddedCluster) -> Iterator[Any]:
    try:
        import ray

        from bench.launch.ray_cluster import join

        join(cluster.text if isinstance(cluster, Address) else cluster)
        try:
            yield ray
        finally:
            ray.shutdown()
    finally:
        if isinstance(cluster, EmbeddedCluster):
            cluster.end()


def check_token_file() -> list[Finding]:
    """Ray writes tokens with the user's default permissions, which let others read them."""
    file = token_file()
    if os.environ.get("RAY_AUTH_TOKEN") or not file.is_file():
        return []
    if readable_by_others(file):
        return [
            warning(
                "Ray token", f"others can read {file}", f"chmod 600 {file}; if others use this machine, a new token"
            )
        ]
    return [ok("Ray token", f"{file}, readable by its owner alone")]


def check_openness(address: Address) -> list[Finding]:
    """Whether the cluster takes in somebody who does not know its token: one is made up and tried."""
    name = "Ray authentication"
    if address.through_client:
        return [
            ok(name, "a token is presented" if os.environ.get("RAY_AUTH_MODE") == "token" else "no token is presented")
        ]
    stranger = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH_TOKEN")}
    answer = probe(address, {**stranger, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    if answer == "refused":
        return [ok(name, "strangers are refused")]
    if answer == "failed":
        return [
            warning(name, f"{address.text} gave no clear answer to a made-up token", "run `ray status` on its head")
        ]
    make = warning if address.is_local else problem
    remedy = "start all of its nodes with RAY_AUTH_MODE=token and one token: docs/inside/security.md"
    return [make(name, "anyone who reaches the cluster can run code on it: it accepts a made-up token", remedy)]


def _look_at_nodes(ray: Any, expected: Expected, local: bool) -> Iterator[Finding]:
    alive = [node for node in ray.nodes() if node["Alive"]]
    lost = len(ray.nodes()) - len(alive)
    totals = ray.cluster_resources()
    nodes: list[Node] = []
    try:
        for node in sorted(alive, key=lambda node: (node["NodeManagerAddress"], node["NodeID"])):
            visited, found = _visit(ray, node)
            yield from found
            nodes.extend([] if visited is None else [visited])
        cpus, gpus = int(totals.get("CPU", 0)), int(totals.get("GPU", 0))
        gone = f"; {lost} more were lost since it started" if lost else ""
        yield ok("nodes", f"{len(alive)} with {cpus} CPU cores and {gpus} GPUs{gone}")
        yield kinds_finding([(node.name, node.gpus, node.device) for node in nodes])
        for node in nodes:
            try:
                if not local:  # this machine has been looked at already
                    yield from _look_at(ray, node, expected)
                yield clock_finding(node.name, _clock_offset(ray, node))
            except ray.exceptions.RayError as error:
                why = " ".join(str(error).split())[:400]
                yield problem("node", f"it stopped answering: {why}", "see whether it lives: `ray status`").on(
                    node.name
                )
        yield from _check_reach(ray, nodes)
    finally:
        for node in nodes:
            ray.kill(node.visitor)


def _visit(ray: Any, node: JsonDict) -> tuple[Node | None, list[Finding]]:
    visitor = _visitor_on(ray, node["NodeID"])
    try:
        name = ray.get(visitor.name.remote(), timeout=VISIT_TIMEOUT_SECONDS)
        processor = ray.get(visitor.processor.remote(), timeout=VISIT_TIMEOUT_SECONDS)
    except ray.exceptions.RayError as error:
        why = " ".join(str(error).split())[:400]
        remedy = (
            "see the logs under /tmp/ray/session_latest/logs there; the node's environment must have tuneoff's packages"
        )
        return None, [problem("node", f"no process starts there: {why}", remedy).on(node["NodeManagerAddress"])]
    from bench.launch.ray_cluster import accelerator_of

    gpus = int(node["Resources"].get("GPU", 0))
    accelerator = accelerator_of(node.get("Labels") or {}, node["Resources"]) or "GPUs of a type that Ray does not know"
    device = accelerator if gpus else processor
    return Node(node["NodeID"], f"{name} ({node['NodeManagerAddress']})", gpus, device, visitor), []


def _visitor_on(ray: Any, node_id: str, gpus: int = 0) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    actor = ray.remote(num_cpus=0, max_restarts=0)(Visitor)
    return actor.options(num_gpus=gpus, scheduling_strategy=strategy).remote()


def _look_at(ray: Any, node: Node, expected: Expected) -> Iterator[Finding]:
    if ray.get(node.visitor.code.remote(), timeout=VISIT_TIMEOUT_SECONDS) != sources_sha256():
        remedy = "remove the tuneoff that is installed there, or install the driver's version"
        yield problem("code", "bench and methods are not the driver's", remedy).on(node.name)
    for found in ray.get(node.visitor.look.remote(expected.model_dump()), timeout=VISIT_TIMEOUT_SECONDS):
        yield Finding.model_validate(found).on(node.name)


def _clock_offset(ray: Any, node: Node) -> float:
    """Seconds by which the node's clock is ahead of ours, according to the question with the shortest answer time."""
    answers = []
    for _ in range(CLOCK_QUESTIONS):
        before = time.time()
        there = ray.get(node.visitor.now.remote(), timeout=VISIT_TIMEOUT_SECONDS)
        after = time.time()
        answers.append((after - before, there - (before + after) / 2))
    return float(min(answers)[1])


def kinds_finding(nodes: Sequence[tuple[str, int, str]]) -> Finding:
    """Whether the nodes that trials run on have devices of one kind.

    Args:
        nodes: Name, number of GPUs, and type of the devices of each. Where some have GPUs, trials run on those.
    """
    name, with_gpus = "kinds of devices", [node for node in nodes if node[1]]
    kinds: dict[str, list[str]] = {}
    for node, _, device in with_gpus or nodes:
        kinds.setdefault(device, []).append(node)
    listed = "; ".join(f"{device} on {', '.join(those)}" for device, those in sorted(kinds.items()))
    if len(kinds) > 1:
        remedy = (
            "no trial is spread over two kinds that fits on one, but costs of trials on different ones cannot be "
            "compared: resources.accelerator names one type of GPU"
        )
        return warning(name, listed, remedy)
    return ok(name, listed or "no node answers")


def clock_finding(node: str, offset_seconds: float) -> Finding:
    """Whether times of this node and of the driver can be compared."""
    if abs(offset_seconds) > FAR_APART_SECONDS:
        ahead = "ahead of" if offset_seconds > 0 else "behind"
        found = f"{abs(offset_seconds):.1f} s {ahead} the driver's"
        return warning("clock against the driver", found, "have NTP set the clocks of all nodes").on(node)
    return ok("clock against the driver", f"within {FAR_APART_SECONDS:g} s").on(node)


def _check_reach(ray: Any, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Ranks of one group on all nodes add up a number; on a single node, two of its processes do."""
    if not nodes:
        return
    yield _reach(ray, "gloo", [(node, 0) for node in (2 * [*nodes] if len(nodes) == 1 else nodes)])
    with_gpu = [node for node in nodes if node.gpus]
    if len(with_gpu) > 1 or (with_gpu and with_gpu[0].gpus > 1):
        yield _reach(ray, "nccl", [(node, 1) for node in (with_gpu * 2 if len(with_gpu) == 1 else with_gpu)])


def _reach(ray: Any, backend: str, places: Sequence[tuple[Node, int]]) -> Finding:
    check = "gloo" if backend == "gloo" else "NCCL"
    where = " and ".join(dict.fromkeys(node.name for node, _ in places))
    ranks = [_visitor_on(ray, node.node_id, gpus) for node, gpus in places]
    limit = 2 * REACH_TIMEOUT_SECONDS
    try:
        try:
            host = ray.get([rank.address.remote() for rank in ranks], timeout=limit)[0]
        except ray.exceptions.GetTimeoutError:
            remedy = "run the doctor again when no trial runs"
            return warning(check, f"not tried: other work holds the GPUs of {where}", remedy)
        port = ray.get(ranks[0].listen.remote(host), timeout=limit)
        pending_sums = [
            rank.all_reduce.remote(backend, host, port, index, len(ranks)) for index, rank in enumerate(ranks)
        ]
        sums = ray.get(pending_sums, timeout=limit)
    except ray.exceptions.RayError as error:
        why = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__).strip()
        return problem(check, f"no all-reduce over {where}: {why[:300]}", _reach_remedy(backend))
    finally:
        for rank in ranks:
            ray.kill(rank)
    expected = len(ranks) * (len(ranks) + 1) / 2
    if any(total != expected for total in sums):
        return problem(check, f"the all-reduce over {where} gave {sums} instead of {expected}", _reach_remedy(backend))
    return ok(check, f"{len(ranks)} ranks on {where} reduced a number")


def _reach_remedy(backend: str) -> str:
    variable = "GLOO_SOCKET_IFNAME" if backend == "gloo" else "NCCL_SOCKET_IFNAME (NCCL_DEBUG=INFO tells more)"
    return (
        f"open all TCP ports between the nodes; where a node has several networks, start Ray there with {variable} set "
        "to the interface that the others reach"
    )
