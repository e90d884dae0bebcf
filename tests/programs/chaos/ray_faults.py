"""Faults of nodes and actors, on Ray clusters of several nodes on this machine."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from bench.launch.keeper import KeptProcess
from chaos.ground import (
    PATIENCE_SECONDS,
    Ground,
    Verdict,
    command_of,
    has_come_to,
    journal_events,
    together,
    wait_until,
)

NODE_STORE_BYTES = 80 * 2**20
# What a rank takes that is too much.
RANK_BYTES = 3 * 2**30


class Nodes:
    """A cluster whose head runs no ranks.

    Args:
        cluster: From ``ray.cluster_utils``.
    """

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.address: str = cluster.address
        self.nodes: list[Any] = []

    def add(self) -> None:
        """One more node, of one core."""
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=NODE_STORE_BYTES))

    def kill_head(self) -> None:
        """The control store of the cluster dies."""
        self.cluster.head_node.kill_gcs_server(check_alive=False)

    def remove(self, index: int) -> None:
        """A node dies: its processes are killed, and nobody is told."""
        self.cluster.remove_node(self.nodes.pop(index), allow_graceful=False)


@contextmanager
def cluster_of(count: int) -> Iterator[Nodes]:
    """So many nodes of one core each."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # these clusters have no token; ray reads it when it is imported
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": NODE_STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = Nodes(cluster)
        for _ in range(count):
            nodes.add()
        cluster.wait_for_nodes()
        yield nodes
    finally:
        cluster.shutdown()


def actor_killed(folder: Path) -> Verdict:
    """The actors that hold the ranks of their nodes are killed."""
    ground = Ground(folder, trials=4)
    with cluster_of(2) as nodes:
        ground.hold_ranks()
        driver = ground.start(LIGHT_ADDRESS=nodes.address)
        for _ in range(2):
            wait_until(lambda: ground.ranks() and _actors(ground), "no rank runs")
            ground.kill_pid(_actors(ground)[0])
            wait_until(lambda: len(journal_events(ground.root, "lost")) >= ground.injected, "nobody noticed")
        ground.release_ranks()
        ground.wait(driver)
        verdict = ground.judge("SIGKILL of an actor")
    return verdict


def node_removed(folder: Path) -> Verdict:
    """One of the two nodes dies on which a trial trains: two DeepSpeed ranks, a small model, data of its own."""
    sweep = real_sweep(folder)
    command = [sys.executable, "-m", "bench.cli", "run", str(sweep), "--launcher", "ray", "--results", str(folder)]
    mark = folder / "mark"
    with cluster_of(2) as nodes:
        ground = Ground(folder, trials=1, command=[*command, "--address", nodes.address])
        variables = {"SLOW_MARK": str(mark), "SLOW_SECONDS": "0.5", "TUNEOFF_TEST_TAG": ground.tag}
        options = folder / "runtime_env.json"
        options.write_text(json.dumps({"env_vars": variables}))
        ground.command += ["--runtime-env", str(options)]
        driver = ground.start()
        wait_until(lambda: mark.exists() or driver.poll() is not None, "training has begun")
        nodes.remove(0)
        ground.injected += 1
        nodes.add()
        ground.wait(driver)
        if {event["reason"] for event in journal_events(ground.root, "lost")} != {"node_lost"}:
            ground.notes.append(f"lost: {journal_events(ground.root, 'lost')}")
        verdict = ground.judge("node removed under a two-node trial")
    return verdict


def only_node_lost(folder: Path) -> Verdict:
    """The only node dies. No trial fails for it: the driver waits, says so and ends. The same command goes on."""
    ground = Ground(folder, trials=3)
    with cluster_of(1) as nodes:
        variables = {"LIGHT_ADDRESS": nodes.address, "LIGHT_PATIENCE_SECONDS": "5"}
        ground.hold_ranks()
        driver = ground.start(**variables)
        wait_until(ground.ranks, "no rank runs")
        nodes.remove(0)
        ground.injected += 1
        output, errors = driver.communicate()
        if driver.returncode != 1 or "no machines: 1 ranks need 1 CPU cores" not in errors:
            ground.notes.append(f"exit code {driver.returncode}: {output}{errors}")
        ground.look()
        ground.release_ranks()
        nodes.add()
        ground.wait(ground.start(**variables))
        return ground.judge("the only node lost, and back")


def head_lost(folder: Path) -> Verdict:
    """The head dies. The driver says so and ends before Ray ends it. The same command goes on with a new head."""
    ground = Ground(folder, trials=3)
    with cluster_of(1) as nodes:
        variables = {"LIGHT_PATIENCE_SECONDS": "5"}
        ground.hold_ranks()
        driver = ground.start(LIGHT_ADDRESS=nodes.address, **variables)
        wait_until(ground.ranks, "no rank runs")
        nodes.kill_head()
        ground.injected += 1
        output, errors = driver.communicate()
        if driver.returncode != 1 or "the head of the Ray cluster" not in errors:
            ground.notes.append(f"exit code {driver.returncode}: {output}{errors}")
        ground.look()
    ground.release_ranks()
    with cluster_of(1) as nodes:
        ground.wait(ground.start(LIGHT_ADDRESS=nodes.address, **variables))
        return ground.judge("head lost, another one started")


def second_node_lost(folder: Path, times: int = 2) -> Verdict:
    """The second of two nodes dies under a trial of two ranks and comes back: the same driver waits and goes on."""
    ground = Ground(folder, trials=3)
    with cluster_of(2) as nodes:
        ground.hold_ranks()
        driver = ground.start(LIGHT_ADDRESS=nodes.address, LIGHT_RANKS="2")
        for _ in range(times):
            wait_until(lambda: len(ground.ranks()) == 2, "no trial runs on both nodes")
            nodes.remove(1)
            ground.injected += 1
            wait_until(lambda: len(journal_events(ground.root, "lost")) >= ground.injected, "nobody noticed")
            time.sleep(2.0)
            nodes.add()
        ground.release_ranks()
        ground.wait(driver)
        if {event["reason"] for event in journal_events(ground.root, "lost")} != {"node_lost"}:
            ground.notes.append(f"lost: {journal_events(ground.root, 'lost')}")
        return ground.judge("second of two nodes lost, and back")


def two_sweeps(folder: Path) -> Verdict:
    """Two sweeps share a cluster; the driver of one is killed and started again. Neither disturbs the other."""
    one, two = Ground(folder, trials=8, name="one"), Ground(folder, trials=8, name="two")
    with cluster_of(2) as nodes:
        variables = {"LIGHT_ADDRESS": nodes.address, "LIGHT_SECONDS": "1"}
        first, second = one.start(**variables), two.start(**variables)
        wait_until(lambda: one.ranks() and two.ranks(), "the sweeps do not run side by side")
        wait_until(partial(has_come_to, one, first, 2), "no progress")
        one.kill(first)
        one.wait(one.start(**variables))
        two.wait(second)
        if lost := journal_events(two.root, "lost"):
            two.notes.append(f"the other sweep lost attempts: {lost}")
        return together("two sweeps on one cluster, a driver killed", [one, two])


def head_restarted(folder: Path) -> Verdict:
    """The head dies while trials run, and starts again at the same address.

    The new cluster knows nothing of the driver, which says so and ends. The same command goes on.
    """
    ground, port = Ground(folder, trials=4), free_port()
    variables = {"LIGHT_ADDRESS": f"127.0.0.1:{port}", "LIGHT_PATIENCE_SECONDS": "5"}
    ground.hold_ranks()
    with started_head(folder / "r1", port):
        driver = ground.start(**variables)
        wait_until(ground.ranks, "no rank runs")
    with started_head(folder / "r2", port):
        ground.injected += 1
        output, errors = driver.communicate(timeout=PATIENCE_SECONDS)
        if driver.returncode != 1 or "has started anew" not in errors:
            ground.notes.append(f"exit code {driver.returncode}: {output}{errors}")
        ground.look()
        ground.release_ranks()
        ground.wait(ground.start(**variables))
        return ground.judge("head restarted at the same address")


def memory_short(folder: Path) -> Verdict:
    """Ray's memory monitor kills what holds a rank that takes too much: the record says so, after one attempt."""
    ground, port = Ground(folder, trials=2), free_port()
    memory = psutil.virtual_memory()
    threshold = (memory.total - memory.available + RANK_BYTES // 2) / memory.total
    monitor = {"RAY_memory_usage_threshold": f"{threshold:.4f}", "RAY_memory_monitor_refresh_ms": "100"}
    with started_head(folder / "r", port, monitor):
        variables = {"LIGHT_ADDRESS": f"127.0.0.1:{port}", "LIGHT_SECONDS": "20", "LIGHT_BYTES": str(RANK_BYTES)}
        ground.wait(ground.start(**variables, LIGHT_CPUS="1"))
        ground.injected = len(ground.seen)
        outcomes = [json.loads(files["result.json"])["outcome"] for files in ground.seen.values()]
        if any(outcome.get("reason") != "out_of_memory" for outcome in outcomes):
            ground.notes.append(f"outcomes: {outcomes}")
        if lost := journal_events(ground.root, "lost"):
            ground.notes.append(f"tried again: {lost}")
        return ground.judge("Ray's memory monitor kills a rank's actor")


@contextmanager
def started_head(folder: Path, port: int, variables: Mapping[str, str] | None = None, cores: int = 1) -> Iterator[None]:
    """A cluster of one node at this address; at the end all of it is killed."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    command = [
        *[sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"],
        *[f"--num-cpus={cores}", "--include-dashboard=false", "--disable-usage-stats", "--node-ip-address=127.0.0.1"],
        *[f"--object-store-memory={NODE_STORE_BYTES}", f"--temp-dir={folder}"],
    ]
    kept = KeptProcess(
        command, {**os.environ, **(variables or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: (folder / "ray_current_cluster").is_file(), "Ray does not start")
        yield
    finally:
        kept.end()


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def nodes_come_and_go(folder: Path, trials: int = 60, times: int = 5, seed: int = 0) -> Verdict:
    """Nodes die and others join while many trials run; the driver is killed once as well."""
    ground, chance = Ground(folder, trials), random.Random(seed)
    variables = {"LIGHT_SECONDS": "0.2"}
    with cluster_of(3) as nodes:
        driver = ground.start(LIGHT_ADDRESS=nodes.address, **variables)
        for number in range(1, times + 1):
            wait_until(partial(has_come_to, ground, driver, number * trials // (times + 1)), "no progress")
            nodes.remove(chance.randrange(len(nodes.nodes)))
            ground.injected += 1
            time.sleep(chance.uniform(0, 2))
            nodes.add()
            if number == times // 2:
                ground.kill(driver)
                driver = ground.start(LIGHT_ADDRESS=nodes.address, **variables)
        ground.wait(driver)
        verdict = ground.judge("nodes removed and added")
    return verdict


def _actors(ground: Ground) -> list[int]:
    return [pid for pid in ground.processes() if command_of(pid).startswith(b"ray::_Actor")]


def real_sweep(folder: Path) -> Path:
    """Two ranks that train slowly: ``odd_methods:Slow`` waits ``SLOW_SECONDS`` at every step."""
    from tiny_sweep import write_tiny_sweep

    return write_tiny_sweep(
        folder,
        "sweep",
        train={"steps": 20, "batch_size": 4, "learning_rate": 1e-3},
        resources={"ranks": 2, "cpus_per_rank": 1, "device": "cpu"},
        methods=["odd_methods:Slow"],
    )
