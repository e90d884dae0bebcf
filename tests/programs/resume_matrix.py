"""Kills ranks in the middle of trainings and compares the results of their retries with an uninterrupted training.

``PYTHONPATH=.:tests:tests/support OMP_NUM_THREADS=1 python tests/programs/resume_matrix.py`` writes
``docs/inside/resume.md``: ZeRO 0 to 3 in all precisions. It takes a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[2] / "docs" / "inside" / "resume.md"
RANKS, STEPS, EVERY = 2, 12, 3
PRECISIONS = ("fp32", "bf16", "fp16")
COMMAND = "PYTHONPATH=.:tests:tests/support OMP_NUM_THREADS=1 python tests/programs/resume_matrix.py"
HEAD = """# Killed and continued

A training with checkpoints whose ranks are killed ends on a CPU with the same numbers as one that nobody kills, to the
bit, in all cases of this table.

Each row trains a random Llama of two layers for {steps} steps on {ranks} ranks, with dropout, warm-up and three
evaluations, and writes a checkpoint after every {every} steps. Then a rank is killed (SIGKILL): either the last rank
after a step that is drawn at random, or rank 0 in the middle of its second checkpoint, when all ranks have written
their pieces and the file that completes the checkpoint is missing. The retry continues from the last complete
checkpoint. It is killed in the same way, until one attempt reaches the end. "Equal" means that the losses of all
steps, the dev losses, the test loss and the stored tensors equal those of an uninterrupted training.
[durability.md](durability.md) explains how it works.

Made by `{command} --seed {seed}`{where}.

| ZeRO | precision | method | killed | lost attempts | continued after steps | skipped steps | the end |
|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Case:
    """One trial, and the point at which one of its ranks is killed; an empty ``crash`` kills none."""

    stage: int
    precision: str
    method: str
    crash: str = ""

    @property
    def description(self) -> str:
        """Where the rank dies, for the table."""
        point, _, count = self.crash.partition(":")
        return f"after {count} steps" if point == "rank.after_step" else "within its second checkpoint"


def cases(seed: int, precisions: Sequence[str], stages: Sequence[int]) -> Iterator[Case]:
    """All cases with a killed rank. The seed draws the steps."""
    draw = random.Random(seed)
    for stage in range(4):
        for precision in PRECISIONS:
            for method in ("lora", "full"):
                crashes = [f"rank.after_step:{draw.randint(EVERY + 1, STEPS - 1)}"]
                crashes += ["rank.within_checkpoint:2"] if stage and method == "lora" else []
                if precision in precisions and stage in stages:
                    yield from (Case(stage, precision, method, crash) for crash in crashes)


def main() -> None:
    """Entry of the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS)
    parser.add_argument("--stages", nargs="+", type=int, default=range(4))
    arguments = parser.parse_args()
    from bench.measure.provenance import cpu_flags, cpu_name

    rows: list[str] = []
    unequal = 0
    with tempfile.TemporaryDirectory() as folder:
        make_surroundings(Path(folder))
        whole: dict[Case, dict[str, Any]] = {}
        for case in cases(arguments.seed, arguments.precisions, arguments.stages):
            plain = Case(case.stage, case.precision, case.method)
            if plain not in whole:
                whole[plain] = run(plain, Path(folder))
            killed = run(case, Path(folder))
            found = difference(whole[plain], killed)
            unequal += bool(found) or not killed["continued"]
            continued = ", ".join(map(str, killed["continued"])) or "none"
            rows.append(
                f"| {case.stage} | {case.precision} | {case.method} | {case.description} | {killed['lost']} | "
                f"{continued} | {killed['skipped']} | {found or 'equal'} |"
            )
            sys.stdout.write(rows[-1] + "\n")
            sys.stdout.flush()
    units = " with units for fp16" if "avx512_fp16" in cpu_flags() else ""
    where = f", on {cpu_name()}{units}"
    head = HEAD.format(command=COMMAND, steps=STEPS, ranks=RANKS, every=EVERY, seed=arguments.seed, where=where)
    arguments.out.write_text(head + "\n".join(rows) + "\n")
    sys.exit(1 if unequal else 0)


def make_surroundings(folder: Path) -> None:
    """A model and a task."""
    from conftest import CITIES, NAMES, save_tiny_model, write_task

    for part in ("model", "task"):
        (folder / part).mkdir()
    save_tiny_model(folder / "model", "llama")
    write_task(folder / "task", [(name, city) for name in NAMES for city in CITIES])


def run(case: Case, folder: Path) -> dict[str, Any]:
    """What became of a trial, of which ranks die and are tried again."""
    from bench.config.load import expand, load_sweep
    from bench.config.resolver import RegistryResolver
    from bench.driver.schedule import Schedule
    from bench.launch.capacity import Machine
    from bench.launch.local import LocalLauncher
    from bench.store.outbox import checkpoints_beside
    from bench.store.records import Store
    from bench.store.retry import RetryPolicy

    sweep = {
        "name": "resume",
        "model": str(folder / "model"),
        "task": {"name": "jsonl", "path": str(folder / "task")},
        "methods": [case.method if case.method == "full" else {"name": case.method, "config": {"dropout": 0.1}}],
        "train": {
            "steps": STEPS,
            "batch_size": 8,
            "micro_batch_size": 2,
            "learning_rate": 3e-3 if case.method == "lora" else 1e-3,
            "warmup_steps": 2,
            "evaluate_every_steps": 4,
            "max_grad_norm": 1.0,
            "adam_epsilon": 1e-6,
        },
        "decode": {"max_new_tokens": 4},
        "resources": {
            "ranks": RANKS,
            "cpus_per_rank": 1,
            "zero_stage": case.stage,
            "precision": case.precision,
            "checkpoint_every_steps": EVERY,
            "device": "cpu",
        },
    }
    path = folder / "sweep.yaml"
    path.write_text(json.dumps(sweep))
    (spec,) = expand(load_sweep(path), RegistryResolver())
    store = Store(Path(tempfile.mkdtemp(dir=folder)))
    os.environ.pop("TUNEOFF_CRASH_AT", None)
    if case.crash:
        os.environ["TUNEOFF_CRASH_AT"] = case.crash
    launcher = LocalLauncher(store.outbox, Machine(cpus=RANKS, gpus=0))
    try:
        retries = RetryPolicy(attempts=6, backoff_seconds=0.1, max_backoff_seconds=0.1)
        Schedule(store, launcher, "resume", retries=retries).run([spec])
    finally:
        launcher.close()
    record: Any = store.read(spec.trial_id)
    outcome = record.outcome
    if outcome.status != "completed":
        sys.exit(f"{case}: {outcome}")
    assert not checkpoints_beside(store.outbox, spec.trial_id).exists()
    adapter = store.root / "trials" / spec.trial_id
    return {
        "lost": len(record.attempt.earlier_reasons),
        "continued": outcome.train.continued_after_steps,
        "skipped": outcome.train.skipped_steps,
        "training losses": [point.loss for point in outcome.train_curve],
        "dev losses": [point.loss for point in outcome.dev_curve],
        "test loss": outcome.test_loss,
        "tensors": sorted((path.name, path.read_bytes()) for path in adapter.glob("adapter*.safetensors")),
    }


def difference(whole: dict[str, Any], killed: dict[str, Any]) -> str:
    """What is not equal, in words."""
    compared = ("training losses", "dev losses", "test loss", "tensors", "skipped")
    return ", ".join(f"other {name}" for name in compared if whole[name] != killed[name])


if __name__ == "__main__":
    main()
