"""Records of a made-up sweep: nine methods, five seeds, learning rates, failures, predictions. Always the same."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

from fakes import MEBIBYTE, completed, record, trial

from bench.schema.record import (
    Completed,
    DevPoint,
    Failed,
    MergedDecode,
    PhaseCost,
    RankCost,
    TrainPoint,
    TrialResult,
)
from bench.schema.trial import TrialSpec
from bench.store.records import Store

# Method: BLEU at its best learning rate, that learning rate, trained parameters, MiB and seconds of training.
METHODS: dict[str, tuple[float, float, int, int, float]] = {
    "full": (66.4, 1e-4, 134_515_008, 4411, 92.0),
    "lora": (66.1, 1e-3, 460_800, 1507, 61.0),
    "dora": (65.9, 1e-3, 502_000, 1733, 83.0),
    "adapter": (65.2, 1e-3, 1_199_520, 1610, 66.0),
    "prefix_tuning": (64.0, 1e-2, 172_800, 1405, 58.0),
    "ia3": (62.2, 5e-3, 64_320, 1380, 55.0),
    "bitfit": (61.0, 1e-3, 103_000, 1375, 54.0),
    "prompt_tuning": (55.3, 1e-1, 11_520, 1420, 63.0),
}
# Methods of which several learning rates were tried.
SEARCHED = ("lora", "prefix_tuning", "full")
NAMES = ("Blue Spice", "The Vaults", "Cocum", "Giraffe", "Zizzi", "The Punter", "Strada", "Fitzbillies", "Aromi")
FOODS = ("Italian", "Chinese", "French", "Indian", "Japanese", "English", "fast food")
AREAS = ("city centre", "riverside")
STEPS = 200


def sample_results(seeds: int = 5) -> list[TrialResult]:
    """Records of every method at every seed, of a learning-rate search for some, of an untouched base, of failures."""
    results = []
    for seed in range(seeds):
        results.append(record(trial("none", seed=seed), _untouched()))
        for method, (_, rate, *_) in METHODS.items():
            results.append(record(_spec(method, seed, rate), _outcome(method, seed, rate)))
    for method in SEARCHED:
        best = METHODS[method][1]
        for factor in (0.1, 0.3, 3.0, 10.0):
            spec = _spec(method, 0, best * factor)
            if factor == 10.0 and method == "full":
                failure = Failed(
                    reason="diverged",
                    phase="train",
                    rank=0,
                    message="Diverged: the loss of step 35 is nan (learning rate 0.001)",
                    traceback="Traceback (most recent call last):\n  ...\nbench.train.Diverged: the loss is nan",
                    log_tail="step 30  loss 8.811\nstep 34  loss 97.220\nstep 35  loss nan",
                )
                results.append(record(spec, failure))
            else:
                results.append(record(spec, _outcome(method, 0, best * factor)))
    memory = Failed(
        reason="out_of_memory",
        phase="train",
        rank=1,
        message="OutOfMemoryError: tried to allocate 512.00 MiB <b>&amp; failed</b>",
        log_tail="loading\npatched\nOutOfMemoryError: tried to allocate 512.00 MiB",
    )
    results.append(record(_spec("vera", 0, 1e-2), memory))
    return results


def write_sample(root: Path, seeds: int = 5, sources: int = 60) -> Path:
    """The same as a results folder, with predictions."""
    store = Store(root)
    root.mkdir(parents=True, exist_ok=True)
    for result in sample_results(seeds):
        files = []
        if isinstance(result.outcome, Completed):
            path = root / "predictions.jsonl"
            path.write_text("\n".join(_predictions(result, sources)) + "\n", encoding="utf-8")
            files.append(path)
        store.commit(result, files)
    return root


def _spec(method: str, seed: int, rate: float) -> TrialSpec:
    chosen = method not in METHODS or rate == METHODS[method][1]
    spec = trial(method, seed=seed, label="" if chosen else f"learning_rate={rate:g}")
    train = spec.train.model_copy(update={"learning_rate": rate, "steps": STEPS})
    return spec.model_copy(update={"train": train})


def _untouched() -> Completed:
    whole = _costs(1300, 0.0, 1290)
    phases = {name: whole.phases[name] for name in ("load", "patch", "validate", "decode", "score")}
    base = completed(21.4, trained=0, train=False)
    return base.model_copy(update={"ranks": [whole.model_copy(update={"phases": phases})]})


def _outcome(method: str, seed: int, rate: float) -> Completed:
    bleu, best, trained, peak, seconds = METHODS[method]
    noise = random.Random(f"{method} {seed} {rate:g}")
    off = math.log10(rate / best) ** 2
    bleu = bleu - 9.0 * off + noise.gauss(0, 0.45)
    seconds *= 1 + 0.02 * noise.random()
    floor = 1.2 + (66.4 - bleu) / 14
    base = completed(bleu, trained=trained, peak=peak)
    cost = base.train
    assert cost is not None
    train_curve = [
        TrainPoint(
            step=step,
            loss=floor + 2.3 * math.exp(-step / 25) + noise.gauss(0, 0.09),
            learning_rate=rate * (1 - step / STEPS),
        )
        for step in range(1, STEPS + 1)
    ]
    dev_curve = [
        DevPoint(step=step, loss=floor + 0.1 + 2.1 * math.exp(-step / 30)) for step in range(20, STEPS + 1, 20)
    ]
    tokens = 565 * 40.0 / seconds * 10
    decode = base.decode
    faster = decode.model_copy(update={"tokens_per_second": 205.0})
    merged = MergedDecode(merged=faster, unmerged=decode, equal_texts=decode.sources) if method == "lora" else None
    return base.model_copy(
        update={
            "train_curve": train_curve,
            "dev_curve": dev_curve,
            "dev_loss": dev_curve[-1].loss,
            "test_loss": dev_curve[-1].loss + 0.05,
            "best_step": STEPS - 20,
            "merged_decode": merged,
            "train": cost.model_copy(update={"steps": STEPS, "tokens_per_second": tokens}),
            "ranks": [_costs(peak, seconds, 1290 if method != "full" else 620)],
        }
    )


def _costs(peak: int, seconds: float, start: int) -> RankCost:
    def phase(took: float, top: int, begin: int) -> PhaseCost:
        return PhaseCost(seconds=took, peak_memory_bytes=top * MEBIBYTE, start_memory_bytes=begin * MEBIBYTE)

    return RankCost(
        rank=0,
        phases={
            "load": phase(3.1, 1300, 330),
            "patch": phase(0.1, 1300, 1290),
            "initialise": phase(0.2, 1310, 1290),
            "train": phase(seconds, peak, start),
            "validate": phase(seconds / 12, peak - 60, start),
            "save": phase(0.1, start, start),
            "decode": phase(9.5, 1390, 1290),
            "score": phase(2.2, 1300, 1290),
        },
        baseline_memory_bytes=330 * MEBIBYTE,
        memory_method="vm_hwm",
    )


def _predictions(result: TrialResult, sources: int) -> list[str]:
    lines = []
    for number in range(sources):
        draw = random.Random(f"source {number}")
        name, food, area = draw.choice(NAMES), draw.choice(FOODS), draw.choice(AREAS)
        own = random.Random(f"{result.spec.method.name} {number}")
        endings = (f" in the {area}", f" near {own.choice(NAMES)}", "", f", {area}", ". It is child friendly")
        lines.append(
            json.dumps(
                {
                    "id": f"test-{number}",
                    "source": f"name : {name} | food : {food} | area : {area}",
                    "prediction": f"{name} serves {food} food{own.choice(endings)}.",
                    "references": [
                        f"{name} serves {food} food in the {area}.",
                        f"In the {area} there is a place with {food} food, {name}.",
                    ],
                    "tags": ["seen" if number % 3 else "unseen"],
                }
            )
        )
    return lines
