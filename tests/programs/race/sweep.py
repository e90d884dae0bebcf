"""The sweep part: 12 trials end to end, against loops around Trainer, in a shell and in one process, and Ray Tune."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from bench.schema.record import Completed, TrialResult
from race.machine import environment, median, ratios

METHODS: dict[str, dict[str, Any]] = {
    "prefix_tuning": {"num_prompt_tokens": 10, "parametrization": "key_value", "shift_positions": True},
    "prompt_tuning": {"num_prompt_tokens": 20},
    "lora": {"rank": 4, "alpha": 32.0},
}
LEARNING_RATES = (1e-3, 2e-3)
SEEDS = (0, 1)
BATCH_SIZE = 8
MAX_NEW_TOKENS = 32


def race(
    model: Path, data: Path, scratch: Path, steps: int, threads: int, repetitions: int, log: Path
) -> dict[str, Any]:
    """Run the sweep with every contender in turns.

    Args:
        model: Folder of a tiny model, so that what is measured is what surrounds training and decoding.
        data: Folder of race.workload.write_sweep_data.
        scratch: For results.
        steps: Of each trial.
        threads: Cores of the machine that the race uses.
        repetitions: Sweeps of each contender.
        log: For the output of commands.
    """
    tune = partial(_ray_tune, threads, log)
    contenders: dict[str, Callable[[Path], list[float]]] = {
        "tuneoff run": lambda out: _tuneoff(model, data, out, steps, log),
        "shell loop of Trainer scripts": lambda out: _shell_loop(_trials(model, data, out, steps, threads), log),
        "Ray Tune of the same function": lambda out: _ray_tune(
            _trials(model, data, out, steps, 1), threads, False, log
        ),
        "Ray Tune with reused actors": lambda out: tune(True, _trials(model, data, out, steps, 1)),
        "a loop in one process": lambda out: _one_process(_trials(model, data, out, steps, threads), log),
    }
    walls: dict[str, list[float]] = {name: [] for name in contenders}
    busy: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, run in contenders.items():
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                started = time.perf_counter()
                seconds = run(Path(folder))
                walls[name].append(time.perf_counter() - started)
            if len(seconds) != len(METHODS) * len(LEARNING_RATES) * len(SEEDS):
                raise RuntimeError(f"{name}: {len(seconds)} trials were completed, see {log}")
            busy[name].append(sum(seconds))
    rates = {name: [1 / wall for wall in values] for name, values in walls.items()}
    return {
        "trials": len(METHODS) * len(LEARNING_RATES) * len(SEEDS),
        "steps": steps,
        "repetitions": repetitions,
        "wall_seconds": walls,
        "median_wall_seconds": {name: median(values) for name, values in walls.items()},
        "median_training_and_decoding_seconds": {name: median(values) for name, values in busy.items()},
        "ratios": {name: median(ratios(rates["tuneoff run"], rates[name])) for name in walls if name != "tuneoff run"},
    }


def _tuneoff(model: Path, data: Path, out: Path, steps: int, log: Path) -> list[float]:
    """Seconds of training and decoding, trial by trial."""
    sweep = {
        "name": "race",
        "model": str(model),
        "task": {"name": "jsonl", "path": str(data)},
        "train": {"steps": steps, "batch_size": BATCH_SIZE},
        "decode": {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 16},
        "resources": {"cpus_per_rank": 1},
        "seeds": list(SEEDS),
        "methods": [
            {"name": name, "config": config, "grid": {"train.learning_rate": list(LEARNING_RATES)}}
            for name, config in METHODS.items()
        ],
    }
    (out / "race.yaml").write_text(yaml.safe_dump(sweep))
    _call([sys.executable, "-m", "bench.cli", "run", str(out / "race.yaml"), "--results", str(out)], log)
    seconds = []
    for path in (out / "race" / "trials").glob("*/result.json"):
        outcome = TrialResult.model_validate_json(path.read_text()).outcome
        if isinstance(outcome, Completed):
            seconds.append(sum(outcome.ranks[0].phases[phase].seconds for phase in ("train", "decode")))
    return seconds


def _trials(model: Path, data: Path, out: Path, steps: int, threads: int) -> list[dict[str, Any]]:
    return [
        {
            "model": str(model),
            "data": str(data),
            "method": method,
            "learning_rate": learning_rate,
            "seed": seed,
            "steps": steps,
            "batch_size": BATCH_SIZE,
            "max_new_tokens": MAX_NEW_TOKENS,
            "threads": threads,
            "out": str(out / f"{number}.json"),
        }
        for number, (method, learning_rate, seed) in enumerate(itertools.product(METHODS, LEARNING_RATES, SEEDS))
    ]


def _shell_loop(trials: list[dict[str, Any]], log: Path) -> list[float]:
    for trial in trials:
        path = Path(trial["out"]).with_suffix(".trial")
        path.write_text(json.dumps(trial))
        _call([sys.executable, "-m", "race.trainer_trial", str(path)], log)
    return _written(trials)


def _one_process(trials: list[dict[str, Any]], log: Path) -> list[float]:
    path = Path(trials[0]["out"]).with_name("loop.json")
    path.write_text(json.dumps({"trials": trials}))
    _call([sys.executable, "-m", "race.one_process", str(path)], log)
    return _written(trials)


def _ray_tune(workers: int, log: Path, reuse_actors: bool, trials: list[dict[str, Any]]) -> list[float]:
    path = Path(trials[0]["out"]).with_name("tune.json")
    path.write_text(json.dumps({"trials": trials, "workers": workers, "reuse_actors": reuse_actors}))
    _call([sys.executable, "-m", "race.tune", str(path)], log)
    return _written(trials)


def _written(trials: list[dict[str, Any]]) -> list[float]:
    found = [json.loads(Path(trial["out"]).read_text()) for trial in trials if Path(trial["out"]).is_file()]
    return [result["train_seconds"] + result["decode_seconds"] for result in found]


def _call(command: list[str], log: Path) -> None:
    with log.open("a") as output:
        subprocess.run(command, stdout=output, stderr=output, check=True, env=environment())
