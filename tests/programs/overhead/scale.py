"""What commands cost on a sweep of many trials: CPU time and peak memory of ``run``, ``status``, ``report``, ``plan``.

The records are written here and no trial is trained: their numbers mean nothing, their sizes are those of real ones.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fakes import completed, record
from tiny_sweep import write_tiny_sweep

from bench.commands.options import read_stages
from bench.metrics.overlap import Bleu
from bench.metrics.texts import prepare
from bench.schema.digests import sha256_of
from bench.schema.record import DevPoint, Provenance, TrainPoint
from bench.schema.trial import TrialSpec
from bench.store.predictions import KEPT_FILE
from bench.store.records import Store, content_sha256
from bench.task import Scoring

STEPS = 60
SOURCES = 40
SYSTEMS = 200  # whose predictions trials have
# Ten configurations; the rest is seeds.
METHODS = (
    {"name": "full"},
    *(
        {"name": name, "grid": {"train.learning_rate": [1e-3, 2e-3, 5e-3]}}
        for name in ("lora", "prompt_tuning", "bitfit")
    ),
)
CONFIGURATIONS = 10


@dataclass(frozen=True)
class Cost:
    """Of one command."""

    trials: int
    what: str
    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int


def measure(folder: Path, sizes: Sequence[int]) -> Iterator[Cost]:
    """All commands on finished sweeps of these sizes, the first time (no index yet) and again."""
    for trials in sizes:
        root = folder / f"of-{trials}"
        root.mkdir()
        sweep = write_finished(root, trials)
        run = ("run", str(sweep), "--results", str(root / "results"), "--launcher", "local")
        results = str(root / "results" / "scale")
        commands = {
            "run, no index": run,
            "run, nothing to do": run,
            "status": ("status", results),
            "report": ("report", results),
        }
        for what, arguments in commands.items():
            yield _cost(trials, what, arguments)


def pending(folder: Path, trials: int) -> Iterator[Cost]:
    """Cost of planning a sweep without records; every second trial has a configuration of its own."""
    root = folder / f"pending-{trials}"
    root.mkdir()
    rates = [1e-4 * (1 + number / 100) for number in range(trials // 4)]
    methods = [{"name": name, "grid": {"train.learning_rate": rates}} for name in ("lora", "bitfit")]
    sweep = _write_sweep(root, seeds=[0, 1], methods=methods)
    yield _cost(trials, "plan", ("plan", str(sweep)))


def _write_sweep(folder: Path, **parts: object) -> Path:
    return write_tiny_sweep(
        folder,
        "scale",
        train={"steps": STEPS, "batch_size": 4, "learning_rate": 1e-3},
        resources={"device": "cpu", "cpus_per_rank": 1},
        **parts,
    )


def write_finished(folder: Path, trials: int) -> Path:
    """A sweep file in this folder, with ``results/scale`` beside it that has all its records."""
    sweep = _write_sweep(folder, seeds=list(range(trials // CONFIGURATIONS)), methods=list(METHODS))
    _, stages = read_stages(sweep, None)
    store = Store(folder / "results" / "scale")
    store.trials.mkdir(parents=True)
    draw = random.Random(0)
    for spec in stages.plain:
        _write_record(store, spec, draw)
    return sweep


def _write_record(store: Store, spec: TrialSpec, draw: random.Random) -> None:
    """Write a record as the store does, without waiting until it is on the disk."""
    folder = store.trials / spec.trial_id
    folder.mkdir()
    packed, bleu = _predictions(draw.randrange(SYSTEMS))
    curve = [TrainPoint(step=step, loss=draw.uniform(0.5, 3.0), learning_rate=1e-3) for step in range(1, STEPS + 1)]
    dev = [DevPoint(step=step, loss=draw.uniform(1.0, 3.0)) for step in range(10, STEPS + 1, 10)]
    outcome = completed(bleu).model_copy(update={"train_curve": curve, "dev_curve": dev, "best_step": STEPS})
    predictions = folder / KEPT_FILE
    predictions.write_bytes(packed)
    result = record(spec, outcome)
    provenance = Provenance.model_validate(
        {**result.provenance.model_dump(), "package_versions": VERSIONS} if result.provenance else {}
    )
    update = {"provenance": provenance, "files": {predictions.name: sha256_of(predictions)}, "sweep": "scale"}
    content = result.model_copy(update=update).model_dump(mode="json")
    content["content_sha256"] = content_sha256(content)
    (folder / "result.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@cache
def _predictions(number: int) -> tuple[bytes, float]:
    """The file of one of many systems, and its BLEU, so that reports test the differences between trials."""
    draw = random.Random(number)
    words = ["a", "French", "place", "at", "the", "riverside", "serves", "food", "near"]
    references = [[f"Place {source} is a French place at the riverside."] * 3 for source in range(SOURCES)]
    texts = [
        " ".join(draw.choice(words) if draw.random() < 0.3 else word for word in some[0].split()) for some in references
    ]
    rows = [
        {
            "id": str(source),
            "source": f"name : Place {source} | food : French | area : riverside",
            "prediction": text,
            "references": some,
            "tags": [],
            "facts": [],
            "truncated": False,
            "scores": {"bleu": 50.0},
        }
        for source, (text, some) in enumerate(zip(texts, references, strict=True))
    ]
    metric = Bleu(Scoring())
    bleu = float(metric.score(metric.statistics(prepare(texts, references, Scoring())).sum(axis=0)))
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0), bleu


VERSIONS = {f"package-{number}": f"{number}.1.0" for number in range(10)}


# A process begins with the memory of the one that started it, as far as the system counts: so a small one does that.
STARTER = """
import json, os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
"""


def _cost(trials: int, what: str, arguments: Sequence[str]) -> Cost:
    """Run ``tuneoff`` in a process of its own; the system counts what it and its children took."""
    began = time.perf_counter()
    command = [sys.executable, "-P", "-m", "bench.cli", *arguments]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", STARTER, *command],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    wall = time.perf_counter() - began
    code, cpu, memory = json.loads(done.stdout)
    if code:
        raise RuntimeError(f"tuneoff {' '.join(arguments)} ended with {code}:\n{done.stderr[-3000:]}")
    return Cost(trials, what, cpu, wall, memory)
