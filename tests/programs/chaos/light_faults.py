"""Faults of drivers, disks and files, on trials that train nothing: hundreds of them take minutes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

from bench.store.crash_points import CrashPoint
from chaos.ground import Ground, Verdict, has_come_to, journal_events, spoil, wait_until

# Batch systems kill what has not ended some 30 s after they asked.
TERM_SECONDS = 25.0
# A commit takes some milliseconds.
KILLED_WITHIN_SECONDS = 0.02
# In which a driver starts and puts in order what the last one left.
START_SECONDS = 1.0


def driver_killed_at(point: CrashPoint, folder: Path, times: int = 2) -> Verdict:
    """The driver (at the points of a rank: the rank) dies at a named point, at its first and at a later passing."""
    ground = Ground(folder, trials=4)
    for time_passed in range(1, times + 1):
        variables = {"TUNEOFF_CRASH_AT": f"{point}:{time_passed}"}
        if point.startswith("lost."):
            # Attempts are lost where ranks die: all of their first ones do, and the driver stumbles over that.
            variables["LIGHT_DIES"] = "1"
        if ground.finish(**variables) == -signal.SIGKILL:
            ground.injected += 1
    ground.finish()
    if point.startswith("rank."):
        ground.injected = len(journal_events(ground.root, "lost")) or times
    if not ground.injected:
        ground.notes.append("no process ever came to this point")
    return ground.judge(f"SIGKILL at {point}")


def driver_killed_at_random(folder: Path, trials: int, times: int, seed: int, fake: bool) -> Verdict:
    """The driver is killed at random moments, and started again each time; with fake trials or with real ranks.

    Counted are kills between the first commit and the last one, however fast or slow the machine is: a driver lives
    until it has committed a random number of trials, and until a random moment or the next commit after these.
    """
    ground, chance = Ground(folder, trials), random.Random(seed)
    variables = {"LIGHT_SECONDS": "0", "LIGHT_CPUS": "4" if fake else "2", **({"LIGHT_FAKE": "1"} if fake else {})}
    torn = 0
    while ground.injected < times and len(ground.seen) < trials:
        # So few that the trials last for all kills, also where some more are committed before the kill.
        more = chance.randint(0, max(1, (trials - len(ground.seen)) // (2 * (times - ground.injected))))
        goal = len(ground.seen) + more
        driver = ground.start(**variables)
        wait_until(partial(has_come_to, ground, driver, goal), "no progress")
        moment = time.monotonic() + chance.uniform(0, KILLED_WITHIN_SECONDS if more else START_SECONDS)
        wait_until(partial(_has_passed, moment, ground, driver, goal + 1), "no progress")
        ground.kill(driver)
        if not 0 < len(ground.seen) < trials:
            ground.injected -= 1
        torn += any(map(_is_torn, ground.root.glob("trials/*")))
    if ground.injected < times:
        ground.notes.append(f"all trials had a record after {ground.injected} kills between two commits")
    ground.finish(**variables)
    what = "fake trials" if fake else "real ranks"
    return ground.judge(f"driver killed between commits, {what}, {torn} torn")


def _has_passed(moment: float, ground: Ground, driver: subprocess.Popen[str], records: int) -> bool:
    """Whether a moment of the monotonic clock has, or the driver has come to so many records before it."""
    return time.monotonic() > moment or has_come_to(ground, driver, records)


def rank_killed(folder: Path) -> Verdict:
    """Ranks are killed while they train; their trials are tried again."""
    ground = Ground(folder, trials=4)
    ground.hold_ranks()
    driver = ground.start()
    for _ in range(2):
        wait_until(ground.ranks, "no rank runs")
        os.kill(ground.ranks()[0], signal.SIGKILL)
        ground.injected += 1
        wait_until(lambda: len(journal_events(ground.root, "lost")) >= ground.injected, "a dead rank was not noticed")
    ground.release_ranks()
    driver.communicate()
    ground.look()
    return ground.judge("SIGKILL of a rank")


def rank_stopped(folder: Path) -> Verdict:
    """A rank is stopped (SIGSTOP) and says nothing any more. Its trial is tried again."""
    ground = Ground(folder, trials=2)
    ground.hold_ranks()
    driver = ground.start(LIGHT_HANG_SECONDS="6")
    wait_until(lambda: ground.phases() == ["train", "train"], "the ranks have not said that they are alive")
    os.kill(ground.ranks()[0], signal.SIGSTOP)
    ground.injected += 1
    ground.release_ranks()
    driver.communicate()
    ground.look()
    if [event["reason"] for event in journal_events(ground.root, "lost")] != ["hung"]:
        ground.notes.append("the stopped rank was not found to hang")
    return ground.judge("SIGSTOP of a rank")


def ranks_paused(folder: Path) -> Verdict:
    """Ranks are stopped, and continued before they count as hanging. No attempt is lost."""
    ground = Ground(folder, trials=4)
    ground.hold_ranks()
    driver = ground.start()
    wait_until(lambda: ground.phases() == ["train", "train"], "the ranks have not said that they are alive")
    paused = ground.ranks()
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for rank in paused:
            os.kill(rank, number)
            ground.injected += number == signal.SIGSTOP
        time.sleep(3.0)
    ground.release_ranks()
    ground.wait(driver)
    if lost := journal_events(ground.root, "lost"):
        ground.notes.append(f"attempts were lost: {lost}")
    return ground.judge("SIGSTOP and SIGCONT of all ranks")


def keeper_killed(folder: Path) -> Verdict:
    """A keeper is killed: its rank loses its driver, and ends."""
    ground = Ground(folder, trials=2)
    ground.hold_ranks()
    driver = ground.start()
    wait_until(ground.ranks, "no rank runs")
    os.kill(_keeper_of(ground.ranks()[0]), signal.SIGKILL)
    ground.injected += 1
    ground.release_ranks()
    driver.communicate()
    ground.look()
    return ground.judge("SIGKILL of a keeper")


def outbox_removed(folder: Path) -> Verdict:
    """Somebody removes the folder in which attempts wait while trials run; they are tried again."""
    ground = Ground(folder, trials=4)
    ground.hold_ranks()
    driver = ground.start()
    wait_until(lambda: ground.phases() == ["train", "train"], "no rank runs")
    removed = ground.root / ".removed"  # In one step: ranks write into it, so that it is never empty for long.
    (ground.root / ".outbox").rename(removed)
    shutil.rmtree(removed)
    ground.injected += 1
    ground.release_ranks()
    ground.wait(driver)
    if not journal_events(ground.root, "lost"):
        ground.notes.append("no attempt was lost")
    return ground.judge("outbox removed while trials run")


def asked_to_end(folder: Path) -> Verdict:
    """SIGTERM, with which batch systems ask: the driver ends at once, whatever its ranks do; one of them is stopped."""
    ground = Ground(folder, trials=4)
    ground.hold_ranks()
    driver = ground.start()
    wait_until(lambda: ground.phases() == ["train", "train"], "no rank runs")
    os.kill(ground.ranks()[0], signal.SIGSTOP)
    driver.send_signal(signal.SIGTERM)
    ground.injected += 1
    started = time.monotonic()
    ground.wait(driver, (130, -signal.SIGINT))
    if time.monotonic() - started > TERM_SECONDS:
        ground.notes.append(f"the driver took {time.monotonic() - started:.0f} s to end")
    ground.release_ranks()
    ground.finish()
    return ground.judge("SIGTERM of the driver")


def asked_to_end_at_random(folder: Path, trials: int = 30, times: int = 8, seed: int = 0) -> Verdict:
    """SIGTERM at random moments, also while the driver starts, recovers and commits; each time it is started again."""
    ground, chance = Ground(folder, trials), random.Random(seed)
    for _ in range(times):
        driver = ground.start(LIGHT_SECONDS="0.2", LIGHT_CPUS="4")
        time.sleep(chance.uniform(0.1, 2.0))
        driver.send_signal(signal.SIGTERM)
        ground.injected += 1
        # Until it can catch the signal, the signal ends it.
        ground.wait(driver, (0, 130, -signal.SIGTERM, -signal.SIGINT))
    ground.finish(LIGHT_SECONDS="0")
    return ground.judge("SIGTERM of drivers at random moments")


def disk_full(folder: Path) -> Verdict:
    """The disk has no room for a record. The result waits and is committed when there is room again."""
    ground = Ground(folder, trials=3)
    for _ in range(2):
        driver = ground.start(LIGHT_DISK_BYTES="2000", LIGHT_CPUS="1")
        if ground.wait(driver, (0, 1)) != 1:
            ground.notes.append("a full disk was not told")
        ground.injected += 1
    started = len(journal_events(ground.root, "started"))
    ground.finish()
    if len(journal_events(ground.root, "started")) - started >= ground.trials:
        ground.notes.append("what had finished before the disk was full was run again")
    return ground.judge("disk full at commit")


def records_damaged(folder: Path) -> Verdict:
    """Records and their files are truncated, changed or overwritten."""
    ground = Ground(folder, trials=5)
    ground.finish()
    trials = sorted(ground.seen)
    for trial_id, how in zip(trials, ("truncated", "changed", "overwritten"), strict=False):
        spoil(ground.root / "trials" / trial_id / "result.json", how)
        ground.forget(trial_id)
    (ground.root / "trials" / trials[3] / "file-0.txt").write_text("something else")
    (ground.root / "trials" / trials[4] / "file-1.txt").unlink()
    for trial_id in trials[3:]:
        ground.forget(trial_id)
    ground.injected = 5
    ground.finish()
    if len(journal_events(ground.root, "set_aside")) != 5:
        ground.notes.append("not every damaged record was set aside")
    return ground.judge("records damaged")


def two_drivers(folder: Path) -> Verdict:
    """A second driver comes while the first one works."""
    ground = Ground(folder, trials=3)
    ground.hold_ranks()
    first = ground.start()
    wait_until(ground.ranks, "no rank runs")
    second = ground.start()
    _, errors = second.communicate()
    ground.injected += 1
    if second.returncode != 2 or f"process {first.pid} on " not in errors:
        ground.notes.append(f"the second driver was not refused properly: {second.returncode} {errors}")
    ground.release_ranks()
    first.communicate()
    ground.look()
    return ground.judge("two drivers")


def stopped_by_people(folder: Path) -> Verdict:
    """Ctrl-C once: what runs is finished. Ctrl-C twice: it is not."""
    ground = Ground(folder, trials=6)
    for presses in (1, 2):
        ground.hold_ranks()
        driver = ground.start(LIGHT_CPUS="1")
        wait_until(lambda: len(ground.ranks()) == 1, "no rank runs")
        before = len(ground.seen)
        for _ in range(presses):
            driver.send_signal(signal.SIGINT)
            if driver.stderr is not None:
                driver.stderr.readline()  # what the driver says when it has caught the signal
        if presses == 1:
            ground.release_ranks()
        driver.communicate()
        ground.injected += 1
        ground.look()
        if len(ground.seen) - before != (1 if presses == 1 else 0):
            ground.notes.append(f"{presses} x Ctrl-C committed {len(ground.seen) - before} trials")
    ground.release_ranks()
    ground.finish()
    return ground.judge("Ctrl-C once, twice")


def _is_torn(trial: Path) -> bool:
    """Whether a trial has files of a record, and not the record itself."""
    return any(map(Path.is_file, trial.iterdir())) and not (trial / "result.json").exists()


def _keeper_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
