"""The doctor on faulty clusters. A stand-in for Ray has each fault."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import ray.exceptions

from bench.doctor import cluster
from bench.doctor.finding import Finding
from bench.doctor.packages import expected
from bench.launch.embedded_cluster import ClusterError
from bench.measure.provenance import sources_sha256

NODE = {"NodeID": "ab" * 28, "NodeManagerAddress": "10.0.0.2", "Alive": True, "Resources": {"CPU": 4.0}}
FINE = {"check": "Python", "status": "ok", "found": "3.11.7", "remedy": None, "node": None}


class Actor:
    """Answers each question with a value, or raises it."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers

    def __getattr__(self, name: str) -> Any:
        return type("Method", (), {"remote": lambda _, *arguments: (self._answers[name], arguments)})()


class Ray:
    """As much of ray as the doctor uses: one actor class, whose actors all give the same answers."""

    exceptions = ray.exceptions
    __version__ = "2"

    def __init__(self, nodes: list[dict[str, Any]], **answers: Any) -> None:
        healthy = {
            "name": "host-two",
            "processor": "Testium",
            "code": sources_sha256(),
            "look": [FINE],
            "now": time.time,
            "address": "10.0.0.2",
            "listen": 4711,
            "all_reduce": 3.0,
        }
        self._nodes, self._answers = nodes, {**healthy, **answers}
        self.killed = 0

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 4.0}

    def remote(self, **options: Any) -> Callable[[type], Any]:
        def made(kind: type) -> Any:
            answers = self._answers

            class Handle:
                def options(self, **more: Any) -> Handle:
                    return self

                def remote(self) -> Actor:
                    return Actor(answers)

            return Handle()

        return made

    def get(self, reference: Any, timeout: float) -> Any:
        if isinstance(reference, list):
            return [self.get(one, timeout) for one in reference]
        answer, _ = reference
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    def kill(self, actor: Actor) -> None:
        self.killed += 1


def look(ray: Ray) -> dict[str, Finding]:
    """The findings by their check."""
    return {found.check: found for found in cluster._look_at_nodes(ray, expected(), local=False)}


def test_a_healthy_node() -> None:
    ray = Ray([NODE, {**NODE, "NodeID": "cd" * 28, "Alive": False}])
    findings = look(ray)
    assert {one.status for one in findings.values()} == {"ok"}
    assert findings["nodes"].found == "1 with 4 CPU cores and 0 GPUs; 1 more were lost since it started"
    assert findings["Python"].node == "host-two (10.0.0.2)"
    assert ray.killed == 3, "the visitor and two ranks are gone"


def test_nodes_with_devices_of_two_kinds_are_told_apart() -> None:
    old = {**NODE, "Resources": {"CPU": 4.0, "GPU": 1.0, "accelerator_type:A100": 1.0}}
    new = {**old, "NodeManagerAddress": "10.0.0.3", "Labels": {"ray.io/accelerator-type": "H100"}}
    found = look(Ray([old, new, NODE], all_reduce=6.0))["kinds of devices"]
    assert found.status == "warning"
    assert found.found == "A100 on host-two (10.0.0.2); H100 on host-two (10.0.0.3)", "trials run on those with GPUs"
    assert "resources.accelerator" in str(found.remedy)
    cores = [("a", 0, "Testium"), ("b", 0, "Testium"), ("c", 0, "Another")]
    assert cluster.kinds_finding(cores[:2]).found == "Testium on a, b"
    assert cluster.kinds_finding(cores).status == "warning"


def test_a_node_where_no_process_starts() -> None:
    broken = ray.exceptions.RayError("No module named 'torch'")
    findings = look(Ray([NODE], name=broken))
    assert (findings["node"].status, findings["node"].node) == ("problem", "10.0.0.2")
    assert "no process starts there: No module named 'torch'" in findings["node"].found
    assert "gloo" not in findings, "nothing is said of what was not looked at"


def test_a_node_with_other_code() -> None:
    finding = look(Ray([NODE], code="another"))["code"]
    assert (finding.status, finding.node) == ("problem", "host-two (10.0.0.2)")


def test_a_node_that_stops_answering() -> None:
    finding = look(Ray([NODE], look=ray.exceptions.GetTimeoutError("300 s")))["node"]
    assert finding.status == "problem" and finding.found == "it stopped answering: 300 s"


def test_a_nodes_own_problems_are_passed_on() -> None:
    sick = {**FINE, "status": "problem", "found": "3.9.0", "remedy": "install"}
    finding = look(Ray([NODE], look=[sick]))["Python"]
    assert (finding.status, finding.node, finding.remedy) == ("problem", "host-two (10.0.0.2)", "install")


def test_clocks_that_differ() -> None:

    finding = look(Ray([NODE], now=lambda: time.time() + 60))["clock against the driver"]
    assert finding.status == "warning" and "60.0 s ahead" in finding.found


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        ({"all_reduce": ray.exceptions.RayError("task\nConnection refused")}, "problem", "Connection refused"),
        ({"listen": ray.exceptions.RayError("Cannot assign requested address")}, "problem", "Cannot assign"),
        ({"all_reduce": 1.0}, "problem", "gave [1.0, 1.0] instead of 3.0"),
        ({"address": ray.exceptions.GetTimeoutError("busy")}, "warning", "not tried"),
        ({}, "ok", "2 ranks on host-two (10.0.0.2) reduced a number"),
    ],
)
@pytest.mark.parametrize(("gpus", "check"), [(0, "gloo"), (2, "NCCL")])
def test_ranks_that_do_not_reach_each_other(
    gpus: int, check: str, answers: dict[str, Any], status: str, said: str
) -> None:
    node = {**NODE, "Resources": {"CPU": 4.0, "GPU": float(gpus)}}
    finding = look(Ray([node], **answers))[check]
    assert finding.status == status and said in finding.found
    if status == "problem":
        assert finding.remedy is not None and f"{check.upper()}_SOCKET_IFNAME" in finding.remedy


def test_a_cluster_that_cannot_be_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    *_, found = cluster.look_at_cluster("127.0.0.1:1", expected())
    assert (found.check, found.status) == ("Ray", "problem") and "nothing answers there" in found.found


def test_an_embedded_cluster_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses() -> None:
        raise ClusterError("Ray did not start on this machine:\nno space left on device")

    monkeypatch.setattr(cluster, "EmbeddedCluster", refuses)
    (finding,) = cluster.look_at_cluster(None, expected())
    assert (finding.check, finding.status) == ("Ray", "problem") and "no space left on device" in finding.found
