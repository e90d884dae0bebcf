"""Energy that a GPU has used, read from the counter of NVIDIA's driver; absent everywhere else."""

from __future__ import annotations

from collections.abc import Callable

import pynvml
import torch


def energy_counter(device: torch.device) -> Callable[[], float | None]:
    """A function that reads the joules that a device has used since its driver was loaded.

    The whole device counts, idle parts and other processes on it included, in steps of some tens of milliseconds: it
    tells something about phases of seconds on a device that nobody else uses. The reader gives None where the device
    does not report its energy: CPUs, GPUs before Volta, drivers without NVML.

    Source: NVML API reference, nvmlDeviceGetTotalEnergyConsumption (millijoules).
    """
    if device.type != "cuda":
        return lambda: None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return counter_of(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")


def counter_of(uuid: str) -> Callable[[], float | None]:
    """The same for the device with this identifier."""
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return lambda: None

    def read() -> float | None:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000.0
        except pynvml.NVMLError:
            return None

    return read
