"""Two hosts for real (tests/multihost/two_hosts.py), and what it says where it cannot have them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent / "multihost" / "two_hosts.py"


def run(path: str, timeout_seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )


def test_a_kernel_that_refuses_is_one_line_and_exit_code_3(tmp_path: Path) -> None:
    ip = tmp_path / "ip"
    ip.write_text("#!/bin/sh\necho 'mount --make-shared /run/netns failed: Operation not permitted' >&2\nexit 1\n")
    ip.chmod(0o755)
    done = run(f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith("refused: this system does not let us make network namespaces: ip netns add tuneoff-")
    assert done.stdout.rstrip().endswith("Operation not permitted")
    assert len(done.stdout.splitlines()) == 1


def test_a_system_without_iproute2_is_told_so(tmp_path: Path) -> None:
    done = run(str(tmp_path))
    assert done.returncode == 3, done.stderr
    assert "no program ip (package iproute2)" in done.stdout


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_two_hosts() -> None:
    """One trial across two hosts, then the cable is cut. Some five minutes."""
    done = run(os.environ["PATH"], 1100)
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
