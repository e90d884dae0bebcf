"""Optimisers by name, and what authors of one import. Listing names imports no torch."""

from __future__ import annotations

OPTIMIZERS: dict[str, str] = {
    "adamw": "bench.optimizers.elementwise:AdamW",
    "adafactor": "bench.optimizers.matrices:Adafactor",
    "adamw_8bit": "bench.optimizers.elementwise:AdamW8Bit",
    "lion": "bench.optimizers.elementwise:Lion",
    "muon": "bench.optimizers.matrices:Muon",
    "schedule_free": "bench.optimizers.averaged:ScheduleFree",
    "galore": "bench.optimizers.matrices:GaLore",
    "apollo": "bench.optimizers.matrices:Apollo",
}
