"""The memory that a process may use is that of its control groups, wherever it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.doctor import machine
from bench.measure import device_memory
from bench.plan.devices import _measured_cpu, measured_cpu

MIB = 2**20


def group(root: Path, name: str, limit: str) -> None:
    path = root / "sys/fs/cgroup" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(limit + "\n")


def listed(root: Path, text: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(text)


def test_the_limits_of_a_container_of_a_job_and_of_all_groups_around_it(tmp_path: Path) -> None:
    container, job, old, none = (tmp_path / name for name in ("container", "job", "old", "none"))
    group(container, "memory.max", str(64 * MIB))
    assert device_memory.memory_limits(container) == [64 * MIB]
    listed(job, "0::/slurm/job_7/step_0\n")
    group(job, "slurm/job_7/memory.max", str(32 * MIB))
    group(job, "slurm/job_7/step_0/memory.max", "max")
    assert device_memory.memory_limits(job) == [32 * MIB]
    listed(old, "5:cpu,cpuacct:/a\n4:memory:/docker/x\n")
    group(old, "memory/docker/x/memory.limit_in_bytes", str(16 * MIB))
    group(old, "memory/a/memory.limit_in_bytes", "1")
    assert device_memory.memory_limits(old) == [16 * MIB], "the group of the cores says nothing"
    assert device_memory.memory_limits(none) == []


def test_plan_doctor_and_ranks_know_the_same_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_memory, "memory_limits", lambda: [2**60, 3 * 2**30])
    monkeypatch.setattr(device_memory, "memory_of_machine", lambda: 100 * 2**30)
    _measured_cpu.cache_clear()
    assert measured_cpu(1).memory_bytes == 3 * 2**30
    assert device_memory.device_memory(torch.device("cpu")) == 3 * 2**30
    (found,) = machine.check_memory(device_memory.host_memory(), device_memory.memory_of_machine())
    assert found.found == "3.0 GiB, the limit of a control group"
    _measured_cpu.cache_clear()
    monkeypatch.setattr(device_memory, "memory_limits", list)
    assert device_memory.host_memory() == 100 * 2**30
