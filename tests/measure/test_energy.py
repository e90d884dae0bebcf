"""Energy by phase where a device reports it; absent, not zero, where it does not."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from fakes import completed, record, trial

from bench.measure import phases
from bench.measure.energy import counter_of, energy_counter
from bench.measure.phases import PhaseMeter
from bench.report.rows import row


class FakeNvml:
    """The three functions of NVML, for one device."""

    def __init__(self, *millijoules: int, uuid: bytes = b"GPU-1") -> None:
        self.readings, self.uuid = list(millijoules), uuid

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        return 0 if uuid == self.uuid else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, found: Any) -> int:
        if not self.readings:
            return 3  # not supported
        ctypes.cast(found, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.readings.pop(0)
        return 0


def test_the_counter_is_read_in_joules_and_absent_where_it_is_not_supported() -> None:
    read = counter_of(FakeNvml(1500, 4500), "GPU-1")
    assert [read(), read(), read()] == [1.5, 4.5, None]
    assert counter_of(FakeNvml(1500), "GPU-2")() is None, "no such device"
    assert energy_counter(torch.device("cpu"))() is None


def test_each_phase_has_its_own_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation within training is not charged to training."""
    readings = iter([10.0, 30.0, 30.0, 35.0, 35.0, 40.0])
    monkeypatch.setattr(phases, "energy_counter", lambda device: lambda: next(readings))
    meter = PhaseMeter(torch.device("cpu"))
    with meter.phase("train"), meter.phase("validate"):
        pass
    assert {name: cost.energy_joules for name, cost in meter.phases.items()} == {"train": 25.0, "validate": 5.0}
    monkeypatch.setattr(phases, "energy_counter", lambda device: lambda: None)
    silent = PhaseMeter(torch.device("cpu"))
    with silent.phase("train"):
        pass
    assert silent.phases["train"].energy_joules is None


def test_a_row_adds_up_the_ranks_of_training() -> None:
    done = completed()
    (cost,) = done.ranks
    assert row(record(trial(), done)).get("energy_joules") is None
    phase = cost.phases["train"].model_copy(update={"energy_joules": 100.0})
    ranks = [cost.model_copy(update={"rank": rank, "phases": {**cost.phases, "train": phase}}) for rank in (0, 1)]
    assert row(record(trial(), done.model_copy(update={"ranks": ranks})))["energy_joules"] == 200.0
