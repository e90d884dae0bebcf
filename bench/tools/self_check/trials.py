"""Runs the trials that measure a device, by the same launcher and schedule as any sweep."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.config.load import expand, load_sweep
from bench.config.resolver import RegistryResolver
from bench.driver.fusable import fusion_of
from bench.driver.schedule import Schedule
from bench.launch.capacity import Machine
from bench.launch.local import LocalLauncher, this_machine
from bench.schema.record import TrialResult
from bench.schema.trial import JsonDict
from bench.store.records import Store
from bench.store.retry import RetryPolicy
from bench.tools.self_check.ground import Size, make_model, make_task

DeviceKind = Literal["cuda", "cpu"]
# All others are compared with this one.
PLAIN = "fp32"


@dataclass(frozen=True)
class Variant:
    """One trial, or several that share its passes, and what it shows."""

    name: str
    resources: JsonDict = field(default_factory=dict)
    model: JsonDict = field(default_factory=dict)
    seeds: int = 1
    without: str = ""  # why it cannot run here


def variants(kind: DeviceKind, devices: int, size: Size) -> Iterator[Variant]:
    """All trials. Half precision on a CPU is tried without ZeRO, which works on every CPU."""
    on_gpu = kind == "cuda"
    yield Variant(PLAIN)
    yield Variant("bf16", {"precision": "bf16"})
    yield Variant("fp16", {"precision": "fp16"})
    yield Variant("eager", model={"attention": "eager"})
    for flash, package in (("flash_attention_2", "flash_attn"), ("flash_attention_3", "flash_attn_interface")):
        missing = "" if importlib.util.find_spec(package) else f"{package} is not installed"
        yield Variant(
            flash,
            {"precision": "bf16"},
            {"attention": flash},
            without=missing if on_gpu else "flash attention runs on GPUs alone",
        )
    for stage in range(4):
        alone = "" if devices >= 2 else "one GPU: NCCL needs two"
        yield Variant(f"ZeRO {stage} on 2 ranks", {"ranks": 2, "zero_stage": stage}, without=alone)
    packed = "" if importlib.util.find_spec("bitsandbytes") else "bitsandbytes is not installed"
    yield Variant("nf4", model={"quantization": "nf4"}, without=packed)
    yield Variant("compiled", {"compile": True})
    for lanes in size.lanes:
        yield Variant(f"{lanes} trials in one pass", {"fuse": lanes}, seeds=lanes)


class Trials:
    """Runs variants one after the other on this machine, in a temporary folder.

    Args:
        kind: Of device.
        size: Of model, data and training.
    """

    def __init__(self, kind: DeviceKind, size: Size) -> None:
        self.kind, self.size = kind, size
        self._folder = tempfile.TemporaryDirectory(prefix="tuneoff-measure-")
        self._root = Path(self._folder.name)
        make_model(self._root / "model", size)
        make_task(self._root / "task", size)
        found = this_machine()
        self.devices = found.gpus if kind == "cuda" else 2
        # Two ranks on a CPU take turns where there is one core.
        machine = found if kind == "cuda" else Machine(cpus=max(2, found.cpus), gpus=0)
        self._store = Store(self._root / "measure")
        self._store.root.mkdir()
        self._launcher = LocalLauncher(self._store.outbox, machine)

    def run(self, variant: Variant) -> list[TrialResult]:
        """The records of a variant, one for each seed."""
        sweep = {
            "name": "measure",
            "model": {"path": str(self._root / "model"), **variant.model},
            "task": {"name": "jsonl", "path": str(self._root / "task")},
            "methods": [{"name": "lora", "config": {"rank": 8, "target_modules": "all_linear"}}],
            "seeds": list(range(variant.seeds)),
            "train": {
                "steps": self.size.steps,
                "batch_size": self.size.batch_size,
                "learning_rate": 1e-3,
                "evaluate_every_steps": self.size.steps // 2,
            },
            "decode": {"max_new_tokens": self.size.max_new_tokens, "batch_size": 16},
            "resources": {"device": self.kind, **({"cpus_per_rank": 1} if self.kind == "cpu" else {})}
            | variant.resources,
        }
        path = self._root / "sweep.yaml"
        path.write_text(json.dumps(sweep), encoding="utf-8")
        specs = expand(load_sweep(path), RegistryResolver())
        once = RetryPolicy(attempts=1)
        Schedule(self._store, self._launcher, "measure", fusion_of=fusion_of, retries=once).run(specs)
        found = [self._store.read(spec.trial_id) for spec in specs]
        # A fused trial has the same id as the trial alone, because sharing a pass is no part of the identity.
        shutil.rmtree(self._store.root / "trials")
        return [record for record in found if isinstance(record, TrialResult)]

    def close(self) -> None:
        """Remove everything."""
        self._launcher.close()
        self._folder.cleanup()


def losses(record: TrialResult) -> Sequence[float]:
    """Training losses of all steps and all dev losses."""
    outcome: Any = record.outcome
    return [point.loss for point in (*outcome.train_curve, *outcome.dev_curve)]
