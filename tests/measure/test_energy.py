"""Energy by phase if a device reports it; absent, not zero, if it does not."""

from __future__ import annotations

import pynvml
import pytest
import torch
from fakes import completed, record, trial

from bench.measure import phases
from bench.measure.energy import counter_of, energy_counter
from bench.measure.phases import PhaseMeter
from bench.report.rows import row


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """NVML of a machine with the device GPU-1; the list holds what its counter says next, in millijoules."""
    readings: list[int] = []

    def handle(uuid: str) -> str:
        if uuid != "GPU-1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    def total(handle: str) -> int:
        if not readings:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return readings.pop(0)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", handle)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", total)
    return readings


def test_the_counter_is_read_in_joules_and_absent_where_it_is_not_supported(one_gpu: list[int]) -> None:
    one_gpu += [1500, 4500]
    read = counter_of("GPU-1")
    assert [read(), read(), read()] == [1.5, 4.5, None]
    one_gpu += [1500]
    assert counter_of("GPU-2")() is None, "no such device"
    assert energy_counter(torch.device("cpu"))() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, whose energy is known")
def test_without_a_driver_energy_is_absent() -> None:
    assert counter_of("GPU-1")() is None


def test_each_phase_has_its_own_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation within training is not charged to training."""
    readings = iter([10.0, 30.0, 30.0, 35.0, 35.0, 40.0])
    monkeypatch.setattr(phases, "energy_counter", lambda device: lambda: next(readings))
    meter = PhaseMeter(torch.device("cpu"))
    with meter.phase("train"), meter.phase("validate"):
        pass
    assert {name: cost.energy_joules for name, cost in meter.phases.items()} == {"train": 25.0, "validate": 5.0}
    part = iter([None, 30.0, 35.0, 40.0])
    monkeypatch.setattr(phases, "energy_counter", lambda device: lambda: next(part))
    begun = PhaseMeter(torch.device("cpu"))
    for _ in range(2):
        with begun.phase("train"):
            pass
    assert begun.phases["train"].energy_joules is None, "the second part alone is not all of it"
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
