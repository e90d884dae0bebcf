"""Where the time of one training step and of one decoding step goes, against what the machine can do at best.

``make profile`` writes results/race/report/profile.md; about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bench.decode import batched
from bench.decode.generate import decoding_settings
from bench.schema.trial import DecodeSpec
from race import machine, ours, workload
from race.contender import Job
from race.machine import median

# Beginning of an operation's name to what it belongs to; the first that fits counts.
KINDS = (
    (("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn"), "matrix products"),
    (("aten::_scaled_dot_product", "aten::scaled_dot"), "attention"),
    (
        ("aten::_log_softmax", "aten::exp", "aten::logsumexp", "aten::topk", "aten::gather", "aten::argmax"),
        "softmax, choice of tokens",
    ),
    (("aten::cat", "aten::copy_", "aten::index", "aten::clone", "aten::fill_", "aten::zero_"), "copies"),
    (("aten::",), "element-wise, norms, rotations"),
)
WARM_UP, MEASURED, PROFILED = 2, 4, 2
DECODED_TOKENS = 16
ROWS = (1, 8, 64, 128, 256, 512, 1024, 2048)


def kind_of(operation: str) -> str:
    """What an operation of the profiler belongs to."""
    return next((kind for starts, kind in KINDS if operation.startswith(starts)), "Python, autograd, DeepSpeed")


def shares(profiler: Any) -> dict[str, float]:
    """Kind of operation to its share of the time of the calling threads."""
    spent: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: seconds / total for kind, seconds in sorted(spent.items(), key=lambda item: -item[1])}


@dataclass
class StepWatch:
    """In the place of a pacer: times some steps, counts the FLOPs of one, profiles some."""

    seconds: list[float] = field(default_factory=list)
    flops: int = 0
    kinds: dict[str, float] = field(default_factory=dict)
    steps: int = WARM_UP + MEASURED + 1 + PROFILED
    _done: int = 0
    _resumed: float = 0.0
    _running: Any = None

    def loaded(self, model: Any) -> None:
        """The first step begins."""
        self._resumed = time.perf_counter()

    def tick(self) -> None:
        """A step has ended."""
        took = time.perf_counter() - self._resumed
        self._done += 1
        if WARM_UP < self._done <= WARM_UP + MEASURED:
            self.seconds.append(took)
        if self._done == WARM_UP + MEASURED:
            self._running = FlopCounterMode(display=False)
            self._running.__enter__()
        elif self._done == WARM_UP + MEASURED + 1:
            self._running.__exit__(None, None, None)
            self.flops = self._running.get_total_flops()
            self._running = profile(activities=[ProfilerActivity.CPU])
            self._running.__enter__()
        elif self._done == self.steps:
            self._running.__exit__(None, None, None)
            self.kinds = shares(self._running)
        self._resumed = time.perf_counter()


def training_step(job: Job, pairs: Sequence[Any], order: Sequence[Any]) -> StepWatch:
    """Steps of our training loop, the engine and the optimiser included."""
    watch = StepWatch()
    ours.train(job, pairs, order[: watch.steps], watch)  # type: ignore[arg-type] # it is paced as by a Pacer
    return watch


def decoding_step(model: Any, tokenizer: Any, sources: Sequence[list[int]], beams: int) -> tuple[float, int, Any]:
    """Seconds of one more token for all sources, FLOPs of it, and the profile."""
    took, flops = {}, {}
    for new_tokens in (1, 1, 1 + DECODED_TOKENS):
        settings = decoding_settings(
            tokenizer, DecodeSpec(beams=beams, max_new_tokens=new_tokens, min_new_tokens=new_tokens), model
        )
        started = time.perf_counter()
        batched.decode(model, sources, settings)
        took[new_tokens] = time.perf_counter() - started
        with FlopCounterMode(display=False) as counter:
            batched.decode(model, sources, settings)
        flops[new_tokens] = counter.get_total_flops()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        batched.decode(model, sources, settings)
    first, last = 1, 1 + DECODED_TOKENS
    return (took[last] - took[first]) / DECODED_TOKENS, (flops[last] - flops[first]) // DECODED_TOKENS, shares(profiler)


def main() -> None:
    """Profile and write."""
    parser = argparse.ArgumentParser(prog="python -m race.profile", description=__doc__)
    parser.add_argument("--e2e", help="folder of the E2E data; without it the public release is downloaded")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path("results/race/report/profile.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    best = machine.ceilings()
    lines = [
        "# Where the time goes",
        "",
        f"{machine.cpu_name()}, {arguments.threads} threads, {arguments.model}, fp32. Ceilings: square matrix products "
        f"{best['square_matmul_flops'] / 1e9:.0f} GFLOP/s, copies {best['copy_bytes_per_second'] / 1e9:.1f} GB/s.",
        "",
    ]
    curve = machine.matmul_curve(ROWS)
    lines += [
        "A product with a weight of 576 x 1536, by rows: "
        + ", ".join(f"{count}: {flops / 1e9:.0f} GFLOP/s" for count, flops in curve.items())
        + ".",
        "",
    ]
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model, task = workload.model_folder(arguments.model, scratch), workload.e2e(arguments.e2e)
        workload.write_batches(scratch / "batches.json", task, model, arguments.batch_size, StepWatch.steps)
        for method in ("prefix_tuning", "full"):
            lines += _training_lines(method, model, scratch / "batches.json", arguments, best)
        lines += _decoding_lines(model, workload.sampled_sources(task, model, 10), best)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("\n".join(lines))
    print("\n".join(lines))  # noqa: T201 - a script's output


def _training_lines(method: str, model: Path, batches: Path, arguments: Any, best: dict[str, float]) -> list[str]:
    config, learning_rate = workload.METHODS[method]
    content = json.loads(batches.read_text())
    job = Job(
        contender="tuneoff",
        model=str(model),
        method=method,
        config=config,
        adapter=None,
        batches=str(batches),
        order="grouped",
        batch_size=arguments.batch_size,
        learning_rate=learning_rate,
        bursts=[StepWatch.steps],
        threads=arguments.threads,
    )
    watch = training_step(job, content["pairs"], content["grouped"])
    seconds = median(watch.seconds)
    return [
        f"## A training step: {method}, {arguments.batch_size} pairs",
        "",
        *_lines(seconds, watch.flops, watch.flops / best["square_matmul_flops"], "FLOPs", watch.kinds),
    ]


def _decoding_lines(model: Path, sources: Sequence[dict[str, Any]], best: dict[str, float]) -> list[str]:
    method, patched = ours.start_of("lora", workload.METHODS["lora"][0], str(model))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in patched.parameters())
    lines = []
    for beams in (1, 5):
        seconds, flops, kinds = decoding_step(
            patched.eval(), method.tokenizer, [source["ids"] for source in sources], beams
        )
        # Reading is half of what a copy moves.
        least = {"FLOPs": flops / best["square_matmul_flops"], "weights": weights / (best["copy_bytes_per_second"] / 2)}
        bound = max(least, key=lambda name: least[name])
        lines += [
            f"## A decoding step: {len(sources)} sources, {'greedy' if beams == 1 else f'{beams} beams'} (shares: of "
            f"{1 + DECODED_TOKENS} tokens and of reading the sources)",
            "",
            *_lines(seconds, flops, least[bound], bound, kinds),
        ]
    return lines


def _lines(seconds: float, flops: int, least: float, bound: str, kinds: dict[str, float]) -> list[str]:
    return [
        f"{seconds * 1e3:.0f} ms; {flops / 1e9:.1f} GFLOP of matrix products; at the ceiling of the "
        f"machine ({bound}) {least * 1e3:.0f} ms, which is {least / seconds:.0%} of the time.",
        "",
        "| what | share of the time |",
        "| --- | ---: |",
        *(f"| {kind} | {share:.1%} |" for kind, share in kinds.items() if share >= 0.001),
        "",
    ]


if __name__ == "__main__":
    main()
