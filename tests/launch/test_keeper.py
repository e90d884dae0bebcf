"""A kept command has the nice value of whoever starts it, and its session the share of processors that goes with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from bench.launch.keeper import script

OWN_AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(not OWN_AUTOGROUP.is_file(), reason="this kernel does not group processes by session")
@pytest.mark.parametrize("niceness", [0, 7])
def test_a_niced_driver_has_niced_sessions(niceness: int) -> None:
    lifeline, held = os.pipe()
    try:
        shown = subprocess.run(
            [*script(lifeline), "--", "cat", str(OWN_AUTOGROUP)],
            capture_output=True,
            text=True,
            check=True,
            pass_fds=[lifeline],
            start_new_session=True,
            preexec_fn=lambda: os.nice(niceness - os.getpriority(os.PRIO_PROCESS, 0)),
        ).stdout
    finally:
        os.close(lifeline)
        os.close(held)
    assert shown.rpartition("nice ")[2].strip() == str(niceness), shown
