"""Which trials start when, and where their ranks go: priority and size, whole nodes, shares of GPUs, several nodes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeLauncher, trial
from pydantic import ValidationError

from bench.driver.schedule import MAX_OVERTAKEN, Schedule
from bench.launch.capacity import Cluster, Machine, Seat
from bench.launch.rank_host import RankHost, clean_environment
from bench.schema.record import Failed
from bench.schema.trial import ModelSpec, ResourceSpec, TrialSpec
from bench.store.records import Store
from bench.store.retry import RetryPolicy


def order(store: Store, launcher: FakeLauncher, *trials: TrialSpec) -> list[str]:
    """Labels in the order of their start."""
    labels = {spec.trial_id: spec.label for spec in trials}
    Schedule(store, launcher, "demo", retries=RetryPolicy(backoff_seconds=0.01)).run(trials)
    return [labels[trial_id] for trial_id in launcher.launched]


def nodes(count: int, cpus: int = 2, gpus: int = 0) -> list[Machine]:
    return [Machine(cpus, gpus, f"node-{number}") for number in range(count)]


def test_higher_priority_goes_first_then_the_largest_then_whoever_came_first(store: Store) -> None:
    launcher = FakeLauncher(store.outbox, Machine(cpus=4, gpus=2))
    started = order(
        store,
        launcher,
        trial(label="small", seed=1, device="cpu", cpus_per_rank=1),
        trial(label="small-later", seed=2, device="cpu", cpus_per_rank=1),
        trial(label="cores", device="cpu", cpus_per_rank=4),
        trial(label="gpus", ranks=2, cpus_per_rank=1),
        trial(label="urgent", device="cpu", cpus_per_rank=1, priority=5),
    )
    assert started == ["urgent", "gpus", "small", "cores", "small-later"]


def test_small_trials_fill_gaps_but_do_not_starve_a_large_one(store: Store) -> None:
    launcher = FakeLauncher(store.outbox, Machine(cpus=2, gpus=0))
    hold = trial(label="hold", cpus_per_rank=1, priority=1)
    small = [trial(label=f"small-{seed}", seed=seed, cpus_per_rank=1) for seed in range(MAX_OVERTAKEN + 10)]
    launcher.hangs.add(hold.trial_id)
    schedule = Schedule(store, launcher, "demo")
    overtook: list[str] = []

    def watch(run: Any) -> None:
        if run.spec.label.startswith("small"):
            overtook.append(run.spec.label)
        if len(overtook) == MAX_OVERTAKEN and hold.trial_id in launcher.hangs:
            launcher.hangs.clear()
            launcher.stop(hold.trial_id, "cancelled")

    launcher.on_launch = watch
    schedule.run([hold, *small, trial(label="large", cpus_per_rank=2)])
    labels = [trial_id.split("-s0")[0] for trial_id in launcher.launched]
    assert len(labels) == len(small) + 2
    before = [label for label in labels[: labels.index("full-large")] if "small" in label]
    assert len(before) <= MAX_OVERTAKEN + 1


def test_ranks_stay_on_one_node_if_one_has_room_else_on_as_few_as_possible_in_order() -> None:
    cluster = Cluster(nodes(3))
    pair = trial(ranks=2, cpus_per_rank=1)
    assert cluster.seat("pair", cluster.need(pair)) == [Seat("node-0"), Seat("node-0")]
    single = cluster.need(trial(cpus_per_rank=1))
    assert cluster.seat("single", single) == [Seat("node-1")], "no room on node-0"
    assert cluster.seat("other", single) == [Seat("node-1")], "the fullest node that has room"
    assert cluster.seat("four", cluster.need(trial(ranks=4, cpus_per_rank=1))) is None, "all ranks or none"
    assert cluster.release("single") == ["other"]
    assert cluster.seat("three", cluster.need(trial(ranks=3, cpus_per_rank=1))) == [
        Seat("node-2"),
        Seat("node-2"),
        Seat("node-1"),
    ]
    assert cluster.release("other") == ["single", "three"]


@pytest.mark.parametrize(("ranks", "accelerator"), [(8, "A100"), (8, None), (16, None)])
def test_the_share_of_cores_is_one_that_each_machine_with_such_gpus_can_give(
    ranks: int, accelerator: str | None
) -> None:
    cluster = Cluster([Machine(192, 8, "large", "NVIDIA H100"), Machine(64, 8, "small", "NVIDIA A100")])
    spec = trial(ranks=ranks, accelerator=accelerator)
    assert cluster.threads(spec) == 8
    assert cluster.shortage(spec) is None
    assert len(cluster.seat("trial", cluster.need(spec)) or []) == ranks
    of_large = trial(ranks=8, accelerator="H100")
    assert cluster.threads(of_large) == 24, "other machines do not matter to it"


def test_no_trial_is_spread_over_two_kinds_of_devices_that_fits_on_one() -> None:
    old, new = (
        [Machine(8, 2, f"old-{n}", "A100") for n in range(2)],
        [Machine(8, 2, f"new-{n}", "H100") for n in range(2)],
    )
    cluster = Cluster([old[0], new[0], old[1], new[1]])
    need = cluster.need(trial(ranks=3, cpus_per_rank=1))
    assert (cluster.at_once(need), cluster.room(need)) == (2, 2)

    def kinds(name: str) -> list[str] | None:
        seats = cluster.seat(name, need)
        return None if seats is None else sorted({seat.node_id.partition("-")[0] for seat in seats})

    first, second = kinds("a"), kinds("b")
    assert sorted([first, second]) == [["new"], ["old"]]
    assert (kinds("c"), cluster.room(need)) == (None, 0), "two GPUs are free, one of each kind: it waits"
    single = cluster.need(trial(cpus_per_rank=1))
    assert cluster.room(single) == 2
    cluster.release("a")
    assert kinds("c") == first
    cluster.release("b")
    cluster.release("c")
    need = cluster.need(trial(ranks=6, cpus_per_rank=1))
    assert (cluster.at_once(need), cluster.missing(trial(ranks=6, cpus_per_rank=1))) == (1, None)
    assert kinds("large") == ["new", "old"], "no kind could ever hold it"


def test_cores_are_of_one_kind_too_where_hosts_tell_it() -> None:
    cluster = Cluster([Machine(1, 0, f"n{n}", processor=name) for n, name in enumerate(["x", "y", "x"])])
    assert cluster.seat("a", cluster.need(trial(ranks=2, cpus_per_rank=1))) == [Seat("n0"), Seat("n2")]


def test_a_trial_that_wants_whole_nodes_shares_them_with_nobody() -> None:
    cluster = Cluster(nodes(1, cpus=4))
    alone = cluster.need(trial(cpus_per_rank=1, exclusive="node"))
    shared = cluster.need(trial(cpus_per_rank=1))
    assert cluster.seat("shared", shared) is not None
    assert cluster.seat("alone", alone) is None
    cluster.release("shared")
    assert cluster.seat("alone", alone) is not None
    assert cluster.seat("shared", shared) is None
    assert cluster.release("alone") == []


def test_shares_of_a_gpu_are_for_trials_of_one_rank_and_name_each_other() -> None:
    half: dict[str, Any] = {"gpus_per_rank": 0.5, "cpus_per_rank": 1, "exclusive": "none"}
    cluster = Cluster([Machine(cpus=8, gpus=2)])
    need = cluster.need(trial(**half))
    assert [cluster.seat(name, need) for name in "abcde"] == [
        [Seat("local", (0,))],
        [Seat("local", (0,))],
        [Seat("local", (1,))],
        [Seat("local", (1,))],
        None,
    ]
    assert cluster.release("a") == ["b", "c", "d"]
    assert cluster.seat("whole", cluster.need(trial(cpus_per_rank=1))) is None, "half of each is no whole one"
    with pytest.raises(ValidationError, match=r"gpus_per_rank below 1 needs ranks: 1; NCCL refuses two ranks"):
        ResourceSpec.model_validate({**half, "ranks": 2})
    with pytest.raises(ValidationError, match=r"gpus_per_rank below 1 shares the GPU; say so with exclusive: none"):
        ResourceSpec.model_validate({"gpus_per_rank": 0.5})


def test_what_no_set_of_nodes_can_hold_is_infeasible_with_what_it_needs_and_what_there_is(store: Store) -> None:
    launcher = FakeLauncher(store.outbox, *nodes(2, cpus=8, gpus=2), Machine(4, 0, "node-2"))
    spec = trial(ranks=5, cpus_per_rank=2, device="cuda")
    Schedule(store, launcher, "demo").run([spec])
    result = store.read(spec.trial_id)
    assert result is not None
    assert isinstance(result.outcome, Failed)
    assert result.outcome.reason == "infeasible"
    assert result.outcome.message == (
        "5 ranks need 10 CPU cores and 5 GPUs; there are 2 nodes of 8 CPU cores and 2 GPUs and 1 nodes of 4 CPU cores "
        "and 0 GPUs. Lower resources.ranks or resources.cpus_per_rank"
    )
    assert launcher.launched == []


def test_nodes_that_come_and_go_are_seats_or_none() -> None:
    cluster = Cluster(nodes(1, cpus=1))
    need = cluster.need(trial(cpus_per_rank=1))
    assert cluster.seat("a", need) is not None
    cluster.update(nodes(2, cpus=1))
    assert cluster.seat("b", need) == [Seat("node-1")]
    cluster.update(nodes(2, cpus=1)[:1])
    assert cluster.release("b") == [], "its node is gone, and its core with it"
    assert cluster.seat("c", need) is None
    cluster.release("a")
    assert cluster.seat("c", need) == [Seat("node-0")]


def test_placement_does_not_change_a_trial_s_id() -> None:
    plain = trial()
    assert trial(priority=3, exclusive="node", hang_seconds=5, checkpoint_every_steps=9).trial_id == plain.trial_id
    assert trial(gpus_per_rank=0.5, exclusive="none").trial_id == plain.trial_id
    assert trial(compile=False).trial_id == plain.trial_id
    assert trial(compile=True).trial_id != plain.trial_id, "it changes what is measured, and rounding"


def test_ranks_do_not_see_what_batch_systems_and_ray_say_about_their_own_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = ("SLURM_PROCID", "OMPI_COMM_WORLD_LOCAL_RANK", "PMIX_RANK", "PMI_RANK", "RAY_AUTH_TOKEN_PATH")
    for name in foreign:
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("HF_HOME", "/hub")
    environment = clean_environment({"OMP_NUM_THREADS": "2"})
    shown = subprocess.run(
        [sys.executable, "-c", "import os; print(sorted(os.environ))"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert not [name for name in foreign if name in shown]
    assert "'HF_HOME'" in shown
    assert "'OMP_NUM_THREADS'" in shown
    assert os.environ["SLURM_PROCID"] == "7", "the driver's own is left alone"


def test_a_host_names_what_it_lacks(tmp_path: Path) -> None:
    host = RankHost()
    try:
        lacking = host.missing(
            [str(tmp_path), str(tmp_path / "data")], ["methods.full", "methods.not_there", "no.such"]
        )
        assert lacking == [str(tmp_path / "data"), "module methods.not_there", "module no.such"]
    finally:
        host.close()


def test_ranks_in_other_folders_find_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "data").mkdir()
    spec = trial()
    task = spec.task.model_copy(update={"config": {"path": "data", "lines": 3}})
    spec = spec.model_copy(update={"model": ModelSpec(path="model"), "task": task})
    assert spec.local_paths == [Path("model"), Path("data")]
    sent = spec.with_absolute_paths()
    assert sent.model.path == str(tmp_path / "model")
    assert sent.task.config == {"path": str(tmp_path / "data"), "lines": 3}
    embedded = trial()
    assert embedded.with_absolute_paths() == embedded
