"""Faults of hosts that a command reaches (``--launcher ssh``), and of the driver that has reached them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from far_machine import far_machine

from chaos.ground import Ground, Verdict, command_of, journal_events, wait_until


@contextmanager
def ground_with_hosts(folder: Path, trials: int) -> Iterator[Ground]:
    """A sweep whose ranks, two for each trial, run on two hosts in process trees of their own."""
    ground = Ground(folder, trials)
    ground.hold_ranks()
    variables = {"TUNEOFF_TEST_TAG": ground.tag, "TMPDIR": str(ground.temporary), **ground.variables}
    with far_machine(folder, **variables) as command:
        ground.variables = {"LIGHT_HOST_COMMAND": command, "LIGHT_RANKS": "2"}
        yield ground


def hosts_lost(folder: Path) -> Verdict:
    """A host is killed while its ranks train, then the command that reaches another one; the trials are tried again."""
    with ground_with_hosts(folder, trials=2) as ground:
        driver = ground.start()
        for sign in (b"bench.launch.host_program", b"far_machine.py"):
            wait_until(lambda: len(ground.ranks()) == 2, "no ranks run")
            _kill_one(ground, lambda pid, sign=sign: sign in command_of(pid) and b"keeper.py" not in command_of(pid))
            wait_until(
                lambda: len(journal_events(ground.root, "lost")) >= ground.injected, "a lost host was not noticed"
            )
        ground.release_ranks()
        ground.wait(driver)
        if [event["reason"] for event in journal_events(ground.root, "lost")] != ["worker_lost", "worker_lost"]:
            ground.notes.append(f"lost: {journal_events(ground.root, 'lost')}")
        return ground.judge("SIGKILL of a host and of a command that reaches one")


def killed_driver_of_hosts(folder: Path) -> Verdict:
    """The driver is killed while ranks train on hosts: these end them and themselves, and the next driver goes on."""
    with ground_with_hosts(folder, trials=1) as ground:
        driver = ground.start()
        wait_until(lambda: len(ground.ranks()) == 2, "no ranks run")
        ground.kill(driver)
        wait_until(lambda: not ground.processes(), "processes are left behind", 20.0)
        ground.release_ranks()
        ground.finish()
        return ground.judge("SIGKILL of a driver with ranks on hosts")


def driver_of_hosts_asked_to_end(folder: Path) -> Verdict:
    """SIGTERM while ranks train on hosts: the driver ends them, and itself with 130."""
    with ground_with_hosts(folder, trials=1) as ground:
        driver = ground.start()
        wait_until(lambda: len(ground.ranks()) == 2, "no ranks run")
        driver.send_signal(signal.SIGTERM)
        ground.injected += 1
        ground.wait(driver, (130,))
        wait_until(lambda: not ground.processes(), "processes are left behind", 20.0)
        ground.release_ranks()
        ground.finish()
        return ground.judge("SIGTERM of a driver with ranks on hosts")


def _kill_one(ground: Ground, is_meant: Callable[[int], bool]) -> None:
    os.kill(next(pid for pid in ground.processes() if is_meant(pid)), signal.SIGKILL)
    ground.injected += 1
