"""Variables by which a launcher tells a rank what is its own."""

from __future__ import annotations

# The GPUs that belong to its seat.
SEAT_VARIABLE = "TUNEOFF_SEAT_GPUS"
