"""Clocks that are set, file systems without locks, homes that take no files; chaos.odd_systems tries them for real."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import completed, provenance, record, trial

from bench.driver.pace import Pace
from bench.driver.status import StatusBoard
from bench.launch.capacity import Cluster, Machine
from bench.launch.launcher import Running
from bench.report.figures.fonts import VARIABLE, fonts_folder
from bench.schema.record import RankReport
from bench.store.lock import FolderLock, is_alive, read_holder
from bench.store.outbox import new_attempt, open_attempt, write_report
from bench.store.records import Store
from bench.store.recover import recover


@pytest.mark.parametrize("days", [-400, -1, 1, 400])
def test_durations_do_not_follow_a_clock_that_is_set(
    days: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, other = trial(cpus_per_rank=1), trial(seed=1, cpus_per_rank=1)
    need = Cluster([Machine(1, 0)]).need(spec)
    board = StatusBoard(tmp_path, "demo", Pace(lambda spec: 10.0, lambda spec: 1))
    board.begin_round([], [spec, other])
    attempt = new_attempt(spec, "demo", "fake", [])
    run = Running(attempt, tmp_path, need, [])
    board.started(attempt)
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + days * 86_400)
    assert 0 <= run.seconds < 60
    board.started(new_attempt(other, "demo", "fake", []))
    board.committed(record(spec, completed()).model_copy(update={"total_seconds": 20.0}))
    now = board.now()
    assert 0 <= now.updated_at - now.started_at < 60
    assert 0 <= now.updated_at - now.running[0].started_at < 60
    left = board.remaining_seconds()
    assert left is not None
    assert 0 <= left < 60


def test_an_attempt_that_ended_before_it_began_took_no_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = trial()
    attempt = new_attempt(spec, "demo", "fake", [])
    store.log("started", trial_id=spec.trial_id, attempt=attempt.attempt.attempt_id, number=1)
    folder = open_attempt(store.outbox, attempt)
    monkeypatch.setattr(time, "time", lambda: attempt.started_at - 3600)
    write_report(folder, 0, RankReport(outcome=completed(), provenance=provenance()), [])
    (found,) = recover(store).committed
    assert found.total_seconds == 0


def test_where_there_are_no_locks_nobody_says_that_a_driver_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".lock"
    lock = FolderLock(path)
    lock.acquire()
    holder = read_holder(path)
    assert holder is not None
    assert is_alive(holder, path) is True

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert is_alive(holder, path) is None
    lock.release()


def test_a_home_that_takes_no_files_leaves_no_folder_of_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (VARIABLE, "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "matplotlib", raising=False)
    with fonts_folder():
        assert Path(os.environ[VARIABLE]).is_dir()
    assert VARIABLE not in os.environ
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "good")
    with fonts_folder():
        assert VARIABLE not in os.environ, "the user's own list of fonts is used"


class Answers:
    """A control store that says what it is told to."""

    def __init__(self, address: str) -> None:
        self.says: dict[Any, Any] | Exception = {}

    def get_all_node_info(self, timeout: float) -> dict[Any, Any]:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def test_a_head_that_is_silent_is_waited_for_and_one_that_is_another_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from bench.launch import ray_cluster
    from bench.launch.launcher import NoMachinesError

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="head:6379"))
    monkeypatch.setattr(ray._raylet, "GcsClient", Answers)
    head = ray_cluster.Head()
    info = SimpleNamespace(
        node_manager_address="10.0.0.1",
        node_manager_port=1,
        resources_total={"CPU": 4.0},
        labels={"ray.io/accelerator-type": "H100"},
        state=0,
        ALIVE=0,
    )
    dead = SimpleNamespace(**{**vars(info), "state": 1})
    head._store.says = {b"\x01": info, b"\x02": dead}
    assert head.machines() == [Machine(4, 0, "01", "H100")]
    head.require_patience()
    head._store.says = ray.exceptions.RpcError("no answer")
    assert head.machines() is None, "it has not lost its nodes"
    assert not head.is_there
    head.require_patience()
    head._store.says = {b"\x01": info}
    assert head.machines(), "it is back"
    assert head.is_there
    head._store.says = ray.exceptions.RpcError("no answer")
    assert head.nodes() is None
    monkeypatch.setattr(ray_cluster, "HEAD_RETURN_SECONDS", -1.0)
    with pytest.raises(NoMachinesError, match="head:6379 has not answered for"):
        head.require_patience()
    again = ray_cluster.Head()
    again._store.says = ray.exceptions.AuthenticationError("WrongClusterID")
    assert again.machines() is None
    with pytest.raises(NoMachinesError, match="head:6379 has started anew, and knows nothing of this driver; issue"):
        again.require_patience()
    assert again.is_lost


class Waits:
    """A launcher of Ray that has nothing but its head."""

    def __init__(self, head: Any) -> None:
        self._head = head


def test_waiting_for_ray_ends_with_a_node_and_with_a_wish_to_stop_but_not_with_a_silent_head() -> None:
    from bench.launch.hosts import HostLost
    from bench.launch.ray_cluster import RayLauncher

    run = SimpleNamespace(seats=[SimpleNamespace(node_id="a")], stop_reason=None)
    answers = iter([None, {"a": 1}, {"b": 1}])
    waits = Waits(SimpleNamespace(nodes=lambda: next(answers)))
    with pytest.raises(HostLost, match="node a is gone") as lost:
        RayLauncher._came(waits, run, lambda: False)  # type: ignore[arg-type]
    assert lost.value.reason == "node_lost"
    assert next(answers, "all asked") == "all asked"
    run.stop_reason = "cancelled"
    assert not RayLauncher._came(waits, run, lambda: False)  # type: ignore[arg-type]
    assert RayLauncher._came(waits, run, lambda: True)  # type: ignore[arg-type]


def test_a_cluster_that_does_not_start_says_what_ray_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bench.launch import embedded_cluster
    from bench.launch.ray_options import RayOptions
    from bench.schema.validation import ConfigError

    refuses = [sys.executable, "-S", "-c", "print('no space left on device'); raise SystemExit(1)"]
    monkeypatch.setattr(embedded_cluster, "_start_command", lambda folder: refuses)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_USAGE_STATS_ENABLED", "RAY_grpc_enable_http_proxy"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    with pytest.raises(ConfigError, match=r"(?s)did not start on this machine:.*no space left.*--launcher local needs"):
        RayOptions().make(tmp_path, [])
