"""Sweeps on systems with unusual clocks, locks, shared memory, users and home folders."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tiny_sweep import write_tiny_sweep

from chaos.ground import Ground, NotPossibleError, Verdict, journal_events, wait_until

DAY_SECONDS = 86_400
# Commands that run others without the rights of root, and who then owns the files: the user "nobody", or, where nobody
# may read the installation, root in a user namespace, without its rights and under another name.
OTHER_USERS: tuple[tuple[list[str], int | None], ...] = (
    (["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"], 65534),
    (["unshare", "--user", "--map-user=1000", "--map-group=1000"], None),
)
SMALL_SHARED_MEMORY = "64m"
# No trial here takes that long.
LONGEST_SECONDS = 120.0
# Where these would be by themselves is what is tried.
NO_CACHES = {"TUNEOFF_TOKEN_CACHE": "", "HF_HUB_OFFLINE": "1"}


class Clock:
    """The time of day that some processes see.

    Args:
        folder: For the file that says by how many seconds the clock is wrong.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clock"
        self.set(0)

    def set(self, seconds: int) -> None:
        """From now on the clock is wrong by so many seconds."""
        with self.path.open("r+b" if self.path.exists() else "xb") as file:
            file.write(struct.pack("=q", seconds))


def preloaded(folder: Path) -> str:
    """The library of odd_system.c, compiled.

    Raises:
        NotPossibleError: There is no C compiler, or this is no Linux.
    """
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        raise NotPossibleError("needs Linux and a C compiler (cc)")
    library = folder / "odd_system.so"
    source = Path(__file__).with_name("odd_system.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return str(library)


def clock_jumps(folder: Path, trials: int = 12) -> Verdict:
    """The time of day jumps by days, in the driver and its ranks, while trials run and between runs."""
    ground, clock = Ground(folder, trials), Clock(folder)
    ground.variables = {"LD_PRELOAD": preloaded(folder), "ODD_CLOCK": str(clock.path), "LIGHT_SECONDS": "0.5"}
    driver = ground.start()
    for days in (1, -2, 365, 0):
        before = len(journal_events(ground.root, "started"))
        wait_until(
            lambda before=before: driver.poll() is not None or len(journal_events(ground.root, "started")) > before,
            "no trial starts",
        )
        time.sleep(0.3)
        clock.set(days * DAY_SECONDS)
        ground.injected += 1
    ground.kill(driver)
    clock.set(-3 * DAY_SECONDS)
    ground.finish()
    if lost := [event for event in journal_events(ground.root, "lost") if event["reason"] != "driver_lost"]:
        ground.notes.append(f"a clock that was set cost attempts: {lost}")
    for trial_id, files in ground.seen.items():
        seconds = json.loads(files["result.json"])["total_seconds"]
        if not 0 <= seconds < LONGEST_SECONDS:
            ground.notes.append(f"{trial_id} is said to have taken {seconds} s")
    return ground.judge("clock set by days, forward and back")


def no_locks(folder: Path) -> Verdict:
    """The results are on a file system without locks: a second driver is refused, and a killed one is succeeded."""
    ground = Ground(folder, trials=6)
    ground.variables = {"LD_PRELOAD": preloaded(folder), "ODD_NO_LOCKS": str(ground.root), "LIGHT_SECONDS": "2"}
    first = ground.start()
    wait_until(ground.ranks, "no rank runs")
    second = ground.start()
    _, errors = second.communicate()
    ground.injected += 1
    if second.returncode != 2 or f"process {first.pid} on " not in errors:
        ground.notes.append(f"the second driver was not refused properly: {second.returncode} {errors}")
    ground.kill(first)
    ground.wait(ground.start())
    return ground.judge("results without flock: two drivers, one killed")


def shared_memory_small(folder: Path) -> Verdict:
    """/dev/shm has 64 MB, as in a container that nobody has configured; embedded Ray, real ranks."""
    mount = f"mount -t tmpfs -o size={SMALL_SHARED_MEMORY} tmpfs /dev/shm"
    prefix = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    done = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotPossibleError(f"needs the rights of root to mount a small /dev/shm: {done.stderr.strip()}")
    return _killed_once(folder, "/dev/shm of 64 MB, driver killed", prefix)


def ordinary_user(folder: Path) -> Verdict:
    """Somebody without rights runs a sweep; embedded Ray, real ranks."""
    if os.geteuid() != 0:
        return _killed_once(folder, f"user {os.geteuid()}, not root; driver killed")
    for prefix, owner in OTHER_USERS:
        command = [*prefix, sys.executable, "-c", "import os, sys; print(os.geteuid() != 0, sys.version)"]
        seen = subprocess.run(command, capture_output=True, text=True, check=False)
        if seen.stdout == f"True {sys.version}\n":
            (folder / "home").mkdir()
            return _killed_once(folder, "not root, driver killed", prefix, {"HOME": str(folder / "home")}, owner)
    raise NotPossibleError("no other user may run this Python, and the system makes no user namespaces")


def home_unwritable(folder: Path) -> Verdict:
    """The user's home cannot be written to; embedded Ray, real ranks."""
    return _killed_once(folder, "HOME unwritable, driver killed", variables={"HOME": "/proc/nowhere"})


def _killed_once(
    folder: Path,
    fault: str,
    prefix: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    owner: int | None = None,
) -> Verdict:
    """A sweep of two trials on a Ray cluster of the driver's own; the driver is killed once, and runs again."""
    ground = real_ground(folder, prefix, launcher="ray")
    ground.variables = {**NO_CACHES, **(variables or {})}
    if owner is not None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner, owner)
    driver = ground.start()
    wait_until(lambda: driver.poll() is not None or journal_events(ground.root, "committed"), "no trial ends")
    ground.kill(driver)
    ground.wait(ground.start())
    return ground.judge(fault)


def real_ground(folder: Path, prefix: Sequence[str] = (), launcher: str = "local") -> Ground:
    """``tuneoff run`` for a sweep of two real trials, which take a few steps each."""
    sweep = write_tiny_sweep(
        folder,
        "sweep",
        train={"steps": 4, "batch_size": 4, "learning_rate": 1e-3},
        resources={"cpus_per_rank": 1, "device": "cpu"},
        methods=["full", "none"],
    )
    command = [sys.executable, "-m", "bench.cli", "run", str(sweep), "--launcher", launcher, "--results", str(folder)]
    return Ground(folder, trials=2, command=[*prefix, *command])
