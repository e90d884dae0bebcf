"""Energy that a GPU has used, by the counter that NVIDIA's driver keeps; absent everywhere else."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

import torch

LIBRARY = "libnvidia-ml.so.1"
SUCCESS = 0


def energy_counter(device: torch.device) -> Callable[[], float | None]:
    """What reads the joules that a device has used so far, since the driver was loaded.

    The whole device counts, idle parts and other processes on it included, in steps of some tens of milliseconds: it
    tells something about phases of seconds on a device that nobody else uses. The reader gives None where the device
    does not report its energy: CPUs, GPUs before Volta, drivers without NVML.

    Source: NVML API reference, nvmlDeviceGetTotalEnergyConsumption (millijoules).
    """
    if device.type != "cuda":
        return _absent
    try:
        library: Any = ctypes.CDLL(LIBRARY)
    except OSError:
        return _absent
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return counter_of(library, uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")


def counter_of(library: Any, uuid: str) -> Callable[[], float | None]:
    """The same for a loaded NVML and the device with this identifier."""
    handle = ctypes.c_void_p()
    if library.nvmlInit_v2() != SUCCESS:
        return _absent
    if library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) != SUCCESS:
        return _absent

    def read() -> float | None:
        millijoules = ctypes.c_ulonglong()
        with contextlib.suppress(AttributeError):  # A driver too old to have the function.
            if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) == SUCCESS:
                return millijoules.value / 1000.0
        return None

    return read


def _absent() -> float | None:
    return None
