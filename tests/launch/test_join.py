"""Joining a Ray cluster that somebody else started: by its address or as ``auto``, and it goes on when we leave."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import psutil
from command import Done
from test_run import Bench

from bench.launch.cluster_access import parse_address, probe


def cluster_processes() -> set[int]:
    """Ids of the processes that are the cluster: its control store and its raylet."""
    folder = str(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent)
    found = set()
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(folder in word for word in words) and words[0].endswith(("gcs_server", "raylet")):
            found.add(process.pid)
    return found


def test_a_joined_cluster_is_left_as_it_was(
    cluster: str, tmp_path: Path, tiny_models: dict[str, Path], tiny_task: Path, tuneoff: Callable[..., Done]
) -> None:
    bench = Bench(tmp_path, tiny_models["llama"], tiny_task)
    bench.environment |= {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    bench.environment["RAY_ADDRESS"] = cluster
    before = cluster_processes()
    assert len(before) == 2
    for method, address in (("none", cluster), ("full", "auto")):
        done = bench.run(f"  - {method}", "--address", address)
        assert done.returncode == 0, done.stdout + done.stderr
        assert {record["launcher"] for record in bench.records().values()} == {"ray"}
        assert cluster_processes() == before, f"it lives on after --address {address}"
        assert probe(parse_address(cluster), os.environ) == "accepted"
    bad = tuneoff(*bench.arguments("  - missing_method", "--address", cluster))
    assert bad.returncode == 2 and cluster_processes() == before
