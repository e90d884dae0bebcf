"""Ranks as Ray actors: one placement group and one fresh actor per rank for each trial. The only file that imports ray.

Ray's state is disposable: it starts processes and tells when they die. What came of a trial is in the store.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from bench.embedded_cluster import EmbeddedCluster
from bench.launch import Launcher, Machine, Running, merged, rank_environment, stopped
from bench.provenance import SOURCE_ROOT, code_sha256
from bench.rank_process import RankJob, join_store, open_store, redirect_output, run_job
from bench.record import Failed, Outcome, Provenance, RankReport
from bench.spec import JsonDict

CHUNK_BYTES = 32 * 1024**2
START_TIMEOUT_SECONDS = 300.0


class _Board:
    """Where ranks leave their progress and the driver picks it up."""

    def __init__(self) -> None:
        self._posts: dict[str, list[tuple[int, JsonDict]]] = {}

    def post(self, trial_id: str, rank: int, event: JsonDict) -> None:
        self._posts.setdefault(trial_id, []).append((rank, event))

    def take(self, trial_id: str) -> list[tuple[int, JsonDict]]:
        return self._posts.pop(trial_id, [])


class _RankActor:
    """A fresh process for one rank of one trial. JSON goes in, JSON comes out."""

    def __init__(self, environment: dict[str, str]) -> None:
        os.environ.update(environment)
        self._outbox = Path(tempfile.mkdtemp(prefix="tuneoff-rank-"))
        self._store: Any = None
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()

    def place(self) -> tuple[str, str, list[int]]:
        """Address, node and GPUs of this process, for the order of ranks."""
        context = ray.get_runtime_context()
        return ray.util.get_node_ip_address(), context.get_node_id(), sorted(map(int, ray.get_gpu_ids()))

    def open_store(self, host: str) -> int:
        """Open the rendezvous; returns its port."""
        self._store = open_store(host)
        return int(self._store.port)

    def run(self, job: JsonDict, host: str, port: int, board: Any) -> JsonDict:
        """Run the rank on this process's main thread."""
        parsed = RankJob.model_validate({**job, "outbox": str(self._outbox)})
        redirect_output(parsed)
        store = self._store or join_store(host, port)
        trial_id = parsed.spec.trial_id
        report = run_job(parsed, store, 0, lambda event: board.post.remote(trial_id, parsed.rank, event))
        return report.model_dump(mode="json")

    def files(self) -> dict[str, int]:
        """Names and sizes of what the rank leaves to the driver."""
        return {path.name: path.stat().st_size for path in self._outbox.iterdir() if path.is_file()}

    def read(self, name: str, offset: int) -> bytes:
        """A piece of one of these files."""
        with (self._outbox / Path(name).name).open("rb") as file:
            file.seek(offset)
            return file.read(CHUNK_BYTES)

    def clear(self) -> None:
        """Delete what the driver has taken."""
        shutil.rmtree(self._outbox, ignore_errors=True)


def _end_with_parent(parent: int) -> None:
    """End this process when the raylet that started it is gone.

    Ray by itself lets an actor finish its running method first, which for a rank may take hours.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


class RayLauncher(Launcher):
    """Starts the ranks of a trial on a Ray cluster.

    Args:
        scratch: Folder on this machine for files on their way into the store.
        cluster: Where ranks run: the address of a running cluster, to which the code of ``bench`` and ``methods`` is
            sent, or one that this process has started and that ends with it.
        plugins: Packages and files that are sent to a running cluster too.
    """

    name = "ray"

    def __init__(self, scratch: Path, cluster: str | EmbeddedCluster, plugins: Sequence[Path] = ()) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if isinstance(cluster, str):
            address = cluster
            modules = [SOURCE_ROOT / "bench", SOURCE_ROOT / "methods", *plugins]
            options["runtime_env"] = {"py_modules": [str(module) for module in modules]}
        else:
            address = cluster.address()
        self._cluster = cluster
        ray.init(address=address, **options)
        total = ray.cluster_resources()
        super().__init__(Machine(cpus=int(total.get("CPU", 0)), gpus=int(total.get("GPU", 0))), scratch)
        self._board = ray.remote(num_cpus=0)(_Board).remote()

    def close(self) -> None:
        for trial_id in list(self.running):
            self.stop(trial_id, "cancelled")
        while self.running:
            self.poll(1.0)
        ray.kill(self._board)
        ray.shutdown()
        if isinstance(self._cluster, EmbeddedCluster):
            self._cluster.end()

    def _run(self, run: Running) -> tuple[Outcome, Provenance | None]:
        ranks = run.spec.resources.ranks
        bundle = {"CPU": run.share.cpus // ranks, **({"GPU": 1} if run.share.gpus else {})}
        group = placement_group([bundle] * ranks, strategy="PACK", name=f"tuneoff:{run.trial_id}")
        actors: list[Any] = []
        try:
            actor_class = ray.remote(max_restarts=0, max_task_retries=0)(_RankActor)
            for index in range(ranks):
                strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
                options = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "scheduling_strategy": strategy}
                actors.append(actor_class.options(**options).remote(self._environment(run)))
            return self._follow(run, actors)
        except ray.exceptions.GetTimeoutError:
            message = f"the ranks did not start within {START_TIMEOUT_SECONDS:g} s"
            return Failed(reason="worker_lost", phase=None, rank=None, message=message), None
        except ray.exceptions.OutOfMemoryError as error:
            return Failed(reason="out_of_memory", phase=None, rank=None, message=str(error)), None
        except ray.exceptions.RayActorError as error:
            return Failed(reason="worker_lost", phase=None, rank=None, message=_first_lines(error)), None
        finally:
            for actor in actors:
                ray.kill(actor)
            remove_placement_group(group)

    def _environment(self, run: Running) -> dict[str, str]:
        environment = rank_environment(run.threads)
        if not run.share.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return environment

    def _follow(self, run: Running, actors: list[Any]) -> tuple[Outcome, Provenance | None]:
        places = ray.get([actor.place.remote() for actor in actors], timeout=START_TIMEOUT_SECONDS)
        order = sorted(range(len(actors)), key=lambda index: places[index])
        actors = [actors[index] for index in order]
        host = places[order[0]][0]
        port = ray.get(actors[0].open_store.remote(host), timeout=START_TIMEOUT_SECONDS)
        reports: dict[int, RankReport] = {}
        pending: dict[Any, int] = {}
        for rank, actor in enumerate(actors):
            job = RankJob(spec=run.spec, rank=rank, outbox="", threads=run.threads, driver_code_sha256=code_sha256())
            pending[actor.run.remote(job.model_dump(mode="json"), host, port, self._board)] = rank
        while pending and not any(isinstance(report.outcome, Failed) for report in reports.values()):
            if run.stop_reason:
                return stopped(run), None
            done, _ = ray.wait(list(pending), timeout=0.5)
            for reference in done:
                rank = pending.pop(reference)
                try:
                    reports[rank] = RankReport.model_validate(ray.get(reference))
                except ray.exceptions.RayActorError as error:
                    lost = Failed(reason="worker_lost", phase=None, rank=rank, message=_first_lines(error))
                    return lost, None
            for rank, data in ray.get(self._board.take.remote(run.trial_id)):
                self.report_progress(run, rank, data)
        for rank in reports:
            self._fetch(actors[rank], run.outbox)
        return merged(reports)

    def _fetch(self, actor: Any, destination: Path) -> None:
        """Copy a rank's files to this machine, in pieces, wherever the rank ran."""
        for name, size in ray.get(actor.files.remote()).items():
            with (destination / Path(name).name).open("wb") as file:
                for offset in range(0, size, CHUNK_BYTES):
                    file.write(ray.get(actor.read.remote(name, offset)))
        with contextlib.suppress(ray.exceptions.RayActorError):
            ray.get(actor.clear.remote())


def _first_lines(error: Exception) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:3])
