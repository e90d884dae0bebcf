"""Two hosts for real (tests/programs/multihost/two_hosts.py), and what it says where it cannot have them."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

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


def test_what_is_refused_once_there_are_hosts_is_a_failure_and_no_excuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: dict[str, Any] = runpy.run_path(str(SCRIPT))["main"].__globals__
    monkeypatch.setitem(made, "two_hosts", lambda: nullcontext((Mock(), Mock())))
    monkeypatch.setitem(made, "Experiment", Mock())
    monkeypatch.setitem(made, "across", Mock())
    monkeypatch.setitem(made, "cut", Mock(side_effect=made["Refused"]("ip link set down: no such device")))
    monkeypatch.setitem(made, "signal", Mock())
    assert made["main"]() == 1
    assert capsys.readouterr().out.endswith("failed: ip link set down: no such device\n")


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_two_hosts() -> None:
    """One trial across two hosts, then the cable is cut. Some five minutes."""
    done = run(os.environ["PATH"], 1100)
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
