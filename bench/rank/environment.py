"""Environment variables that a launcher sets for a rank."""

from __future__ import annotations

# The GPUs of the rank's seat.
SEAT_VARIABLE = "TUNEOFF_SEAT_GPUS"
