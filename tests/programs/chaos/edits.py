"""Changes the sweep file between a driver that is killed and the next one. Finished trials must stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

from chaos.ground import Ground, Verdict, has_come_to, wait_until
from chaos.odd_systems import real_ground


def sweep_edited(folder: Path) -> Verdict:
    """Adds a seed, drops a method, renames the sweep with its folder, and kills the driver twice, on real trials."""
    ground = real_ground(folder)
    ground.trials = 4
    edit(folder, seeds=[0])
    _kill_after(ground, 1)
    edit(folder, seeds=[0, 1])
    _kill_after(ground, 1)
    edit(folder, methods=["none"])
    ground.wait(ground.start())
    if sorted(name.split("-")[0] for name in ground.seen).count("none") != 2:
        ground.notes.append(f"not the trials of the methods that are left: {sorted(ground.seen)}")
    edit(folder, name="renamed", methods=["none", "full"])
    ground.move(folder / "renamed")
    ground.injected += 4
    ground.wait(ground.start())
    return ground.judge("sweep edited between runs, driver killed")


def edit(folder: Path, **parts: object) -> None:
    """Change keys of the sweep file."""
    path = folder / "sweep.yaml"
    path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))


def _kill_after(ground: Ground, commits: int) -> None:
    """Kill a driver that has committed so many trials."""
    driver = ground.start()
    wait_until(lambda: has_come_to(ground, driver, len(ground.seen) + commits), "no trial ends")
    ground.kill(driver)
